"""A study in a database that several searches work on: which of its trials are whose, and how many there may be.

Optuna numbers the trials of a study in the database, so no two searches get the same. What a search runs is marked as its
own; only that search begins it again when it is resumed.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from autocompress.errors import InputError
from autocompress.layer import Layers

DUPLICATE = "duplicate_of"
_RUN, _NETWORK, _SURPLUS = "run", "network", "surplus"
# A search that was killed between getting a trial and marking it left one that is nobody's. (It takes milliseconds.)
_NOBODYS = timedelta(minutes=2)


@dataclass(frozen=True)
class SharedStudy:
    """The study called `name` in a database; the trials of this search are marked with `run`."""

    storage: BaseStorage
    name: str
    run: str


class Share:
    """What one search has to know of the others on its study.

    Raises `InputError` when the study is of another network: what was learned of that one says nothing of this.
    """

    def __init__(self, study: optuna.Study, run: str, layers: Layers) -> None:
        self._study, self._run = study, run
        network = hashlib.sha256(layers.to_json().encode()).hexdigest()[:16]
        known = study.user_attrs.get(_NETWORK)
        if known is None:
            study.set_user_attr(_NETWORK, network)
        elif known != network:
            raise InputError(f"the study {study.study_name!r} is of another network; give --study a name that is not taken")

    @property
    def mark(self) -> dict[str, str]:
        """What is stored with a trial of this search."""
        return {_RUN: self._run}

    def is_mine(self, trial: FrozenTrial) -> bool:
        """True for a trial of this search, and for one that was left without a mark."""
        owner = trial.user_attrs.get(_RUN)
        if owner is None and trial.datetime_start is not None:
            return datetime.now() - trial.datetime_start > _NOBODYS
        return bool(owner == self._run)

    def sampled(self, *, but: Collection[int] = (), before: int | None = None) -> int:
        """How many trials all searches have run or are running, without refits, repeated policies, and those numbered `but`.

        With `before` only those with a lower number.
        """
        return sum(
            trial.state is not TrialState.WAITING
            and trial.number not in but
            and (before is None or trial.number < before)
            and not {DUPLICATE, _SURPLUS, "refit_of"} & trial.user_attrs.keys()
            for trial in self._study.get_trials(deepcopy=False)
        )

    def takes(self, trial: Trial, most: int | None) -> bool:
        """Marks a new trial; False, and ends it, when `most` had been asked for by then.

        Two searches that both saw room for one trial more learn so by the numbers which of them it belongs to. A trial that
        turns out to repeat another leaves its room to whoever had it: that search asks again at once.
        """
        trial.set_user_attr(_RUN, self._run)
        if most is None or self.sampled(before=trial.number) < most:
            return True
        trial.set_user_attr(_SURPLUS, True)
        self._study.tell(trial.number, state=TrialState.FAIL)
        return False

    def repeats_anothers(self, trial: Trial, key: str) -> bool:
        """Ends a trial with a policy (named by its `key`) that another search has run or is running; False when there is none.

        As failed, and not counted: the sampler learns of the policy from the other trial.
        """
        for other in self._study.get_trials(deepcopy=False):
            if other.number < trial.number and other.user_attrs.get("key") == key and not self.is_mine(other):
                trial.set_user_attr(DUPLICATE, other.number)
                self._study.tell(trial.number, state=TrialState.FAIL)
                return True
        return False
