"""The search: one stored Optuna study that is asked for policies and told what came of them."""

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from warnings import catch_warnings, simplefilter

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState, create_trial
from pydantic import ValidationError

from autocompress.errors import InputError, RunFolderError, unknown_name
from autocompress.experiment import Budget, Experiment
from autocompress.front import ParetoFront, missed, unusable
from autocompress.layer import Layers
from autocompress.noun import first_problem
from autocompress.policy import Policy
from autocompress.result import Status, TrialResult

Direction = Literal["minimize", "maximize"]

STUDY_NAME = "autocompress"
SAMPLERS = ("tpe", "nsga2", "random")

# What Optuna is told of a trial. TPE ranks pruned trials behind complete ones; it and NSGA-II leave failed ones out.
STATES: dict[Status, TrialState] = {
    Status.COMPLETE: TrialState.COMPLETE,
    Status.STOPPED: TrialState.PRUNED,
    Status.FAILED: TrialState.FAIL,
}

# A sampler that has settled on a few policies repeats them; after so many in a row policies are drawn at random, and
# after so many the search ends: there is hardly anything left that was not run.
RANDOM_AFTER = 20
EXHAUSTED_AFTER = 200

_REHEARSALS = 20
_LOST = "the study has lost this trial"


@dataclass(frozen=True)
class Asked:
    """A trial to run: `number` is Optuna's, `policy` is canonical, `seed` follows from the experiment's seed and the number."""

    number: int
    policy: Policy
    seed: int


class Search:
    """Asks a stored Optuna study for policies and tells it results; both may interleave in any order.

    **Numbers** are Optuna's. They have gaps: a policy that amounts to one that was run before is a trial in the study,
    but is not run. It gets the result of the earlier one, whatever it was, as soon as that is there (also a failure:
    only a trial whose worker died has been tried twice), and costs no budget.

    **Resume.** The record is the truth: constructed over an existing study with the `recorded` results, the search
    goes on where it stopped. Trials that were under way are asked for again first, under the same number, with the same
    policy and seed. A result whose trial the study has lost still counts; only the sampler cannot learn from it.

    **Seeds.** What is sampled for a trial depends on the experiment's seed, the trial's number and the results told so
    far. Told in order, the same seed gives the same policies, in one session or many. (A sampler object of the user's
    keeps its own random state, which a new session begins anew.)

    `baseline` holds the metrics of the uncompressed model, `study` the file of a journal or any Optuna storage. The
    time of the budget runs from here. Raises `InputError` for what the user can mend: a metric or sampler that does not
    exist, a space that makes invalid policies, start parameters that the space does not have, a study of another search.
    """

    def __init__(
        self,
        experiment: Experiment,
        layers: Layers,
        baseline: dict[str, float],
        *,
        study: Path | BaseStorage,
        recorded: Sequence[TrialResult] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._experiment = experiment
        self._layers = layers
        self._objectives = experiment.parsed_objectives
        self._limits = experiment.parsed_limits
        self._baseline = baseline
        _check(experiment, layers, baseline)
        self._results: list[TrialResult] = []
        self._hypervolumes: list[float] = []
        self._front = ParetoFront.of([], self._objectives, self._limits, baseline)
        self._told: set[int] = set()
        self._finished: dict[str, TrialResult] = {}  # by the key of the policy
        self._running: dict[int, Asked] = {}
        self._trials: dict[int, Trial] = {}  # Optuna's side of the running ones
        self._twins: dict[str, list[Trial]] = {}  # by key: trials that wait for a running one with the same policy
        self._pending: deque[Trial] = deque()  # under way when an earlier session ended
        self._repeats = 0
        self._reason: str | None = None
        minutes = experiment.budget.minutes
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._storage = _journal(study) if isinstance(study, Path) else study
        self._study = _open(self._storage, experiment, study)
        self._go_on(recorded)
        for params in experiment.start:
            self._study.enqueue_trial(params, skip_if_exists=True)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """All recorded and told results, in that order; a complete one without usable metrics is a failed one here."""
        return tuple(self._results)

    @property
    def front(self) -> ParetoFront:
        return self._front

    @property
    def hypervolumes(self) -> list[float]:
        """The hypervolume of the front after each of `results`."""
        return list(self._hypervolumes)

    @property
    def running(self) -> tuple[Asked, ...]:
        return tuple(self._running.values())

    @property
    def reason(self) -> str | None:
        """Why the search asks for nothing more; None while it goes on."""
        return self._reason

    def stop(self, reason: str) -> None:
        """Nothing more is asked for; what is under way may still be told."""
        self._reason = reason

    def ask(self) -> Asked | None:
        """The next trial to run, or None when there is none: `reason` says why.

        Raises `InputError` when the space makes no valid policy.
        """
        while not self._is_over():
            trial = self._pending.popleft() if self._pending else self._study.ask()
            policy = self._policy_of(trial)
            key = policy.key()
            if key in self._finished:
                self._close(trial, self._finished[key])
            elif key in self._twins:
                self._twins[key].append(trial)
            else:
                self._repeats = 0
                asked = Asked(number=trial.number, policy=policy, seed=self._seed(trial.number, "trial"))
                self._twins[key] = []
                self._trials[trial.number] = trial
                self._running[trial.number] = asked
                return asked
            self._repeats += 1
        return None

    def tell(self, result: TrialResult) -> None:
        """Takes the result of a trial that was asked for; a second one of the same number is ignored.

        A complete result whose objectives or limits cannot be computed is taken as failed.
        """
        if result.number in self._told:
            return
        asked = self._running.pop(result.number, None)
        if asked is None:
            raise ValueError(f"trial {result.number} was told, but never asked for")
        key = asked.policy.key()
        judged = self._take(result, key)
        for trial in (self._trials.pop(result.number), *self._twins.pop(key)):
            self._close(trial, judged)

    def _is_over(self) -> bool:
        if self._reason is None:
            trials, minutes = self._experiment.budget.trials, self._experiment.budget.minutes
            if trials is not None and len(self._results) + len(self._running) >= trials:
                self._reason = f"the budget of {trials} trials is used up"
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self._reason = f"the time of {minutes:g} minutes is up"
            elif self._repeats >= EXHAUSTED_AFTER:
                self._reason = f"{self._repeats} policies in a row had been run before: the search space is exhausted"
        return self._reason is not None

    def _policy_of(self, trial: Trial) -> Policy:
        """What the trial was stored with, or else what the space makes of it."""
        number = trial.number
        if stored := trial.user_attrs.get("policy"):
            policy = Policy.from_json(stored, source=f"trial {number} of the study")
            policy.check(self._layers, self._experiment.target.menu)
            return policy
        self._study.sampler = self._sampler(number)
        try:
            policy = _sampled(self._experiment, self._layers, trial)
        except InputError as error:
            trial.set_user_attr("error", str(error))
            self._study.tell(number, state=TrialState.FAIL)
            raise
        trial.set_user_attr("key", policy.key())
        trial.set_user_attr("policy", policy.to_json())
        return policy

    def _sampler(self, number: int) -> BaseSampler:
        chosen = self._experiment.sampler
        if isinstance(chosen, BaseSampler):
            return chosen
        # A new one each time: with a seed of its own, a trial is sampled alike in whichever session it is asked for.
        name = "random" if self._repeats >= RANDOM_AFTER else chosen
        return _sampler_named(name, self._seed(number, "sampler"), self._experiment.budget)

    def _seed(self, number: int, purpose: Literal["trial", "sampler"]) -> int:
        spawn = (number, 0 if purpose == "trial" else 1)
        return int(np.random.SeedSequence(self._experiment.seed, spawn_key=spawn).generate_state(1)[0])

    def _take(self, result: TrialResult, key: str) -> TrialResult:
        if result.status is Status.COMPLETE and (problem := unusable(result.metrics, self._objectives, self._limits)):
            result = result.model_copy(update={"status": Status.FAILED, "error": problem})
        self._told.add(result.number)
        self._results.append(result)
        self._finished.setdefault(key, result)
        # The front of the front and one more is the front of all.
        known = (*self._front.members, *self._front.nearest, result)
        self._front = ParetoFront.of(known, self._objectives, self._limits, self._baseline)
        self._hypervolumes.append(self._front.hypervolume())
        return result

    def _close(self, trial: Trial, result: TrialResult) -> None:
        """Ends a trial of the study with a result: its own or, for a repeated policy, that of the trial that was run."""
        state = STATES[result.status]
        values = None
        if trial.number != result.number:
            trial.set_user_attr("duplicate_of", result.number)
        if state is TrialState.COMPLETE:
            values = [result.metrics[objective.metric] for objective in self._objectives]
            beyond = missed(result.metrics, self._limits, self._baseline)
            for limit in self._limits:
                if limit.text not in trial.constraints:
                    excess = limit.excess(result.metrics, self._baseline)
                    trial.set_constraint(limit.text, excess if limit in beyond else min(excess, 0.0))
        else:
            trial.set_user_attr("rungs", [[rung.step, rung.accuracy] for rung in result.rungs])
            trial.set_user_attr("error", result.error)
        try:
            self._study.tell(trial.number, values, state=state)
        except RuntimeError:
            # A grid that has been walked wants to stop Optuna's own loop, after the trial was stored.
            self.stop("the sampler has nothing left to propose")

    def _go_on(self, recorded: Sequence[TrialResult]) -> None:
        """Brings the study and the record of earlier sessions together."""
        results: dict[int, TrialResult] = {}
        for result in recorded:
            if result.number not in self._told:
                results[result.number] = self._take(result, result.policy.key())
        trials = self._study.get_trials(deepcopy=False)
        for _ in range(len(trials), max(results, default=-1) + 1):
            # Keeps the number. Without parameters a complete trial would end TPE's joint sampling.
            self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"error": _LOST}))
        for trial in trials:
            if trial.state.is_finished():
                continue
            known = results.get(trial.number)
            key = trial.user_attrs.get("key") if "policy" in trial.user_attrs else None
            if known is not None and key != known.policy.key():
                self._storage.set_trial_user_attr(self._id(trial), "error", _LOST)
                self._storage.set_trial_state_values(self._id(trial), TrialState.FAIL)
            elif known is not None:
                self._close(Trial(self._study, self._id(trial)), known)
            elif key in self._finished:
                self._close(Trial(self._study, self._id(trial)), self._finished[key])
            elif trial.state is TrialState.RUNNING:
                self._pending.append(Trial(self._study, self._id(trial)))

    def _id(self, trial: FrozenTrial) -> int:
        study = self._storage.get_study_id_from_name(STUDY_NAME)
        return self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)


class _Journal(JournalFileBackend):
    """Optuna's journal file, without its lock and without a flush to the disk after every line.

    One process writes, and the lock of one that was killed would hold up the next for 30 seconds. A flush for every
    parameter takes longer than the sampling; what a power cut takes from the study is still in the record.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._path = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._path.open("a") as file:
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs))


def _journal(file: Path) -> BaseStorage:
    try:
        file.touch()
        _cut_torn_line(file)
        return JournalStorage(_Journal(file))
    except OSError as error:
        raise RunFolderError(f"cannot open the study {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(file) from error


def _cut_torn_line(file: Path) -> None:
    """Removes a last line that was cut short by a crash: Optuna would write on in the middle of it."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _damaged(study: Path | BaseStorage) -> RunFolderError:
    return RunFolderError(
        f"the study {study} is damaged; remove it and resume: the results are in the record, only the sampler forgets them"
    )


def _open(storage: BaseStorage, experiment: Experiment, where: Path | BaseStorage) -> optuna.Study:
    objectives = experiment.parsed_objectives
    metrics = [objective.metric for objective in objectives]
    directions: list[Direction] = ["minimize" if objective.goal == "min" else "maximize" for objective in objectives]
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            sampler=experiment.sampler if isinstance(experiment.sampler, BaseSampler) else None,
            directions=directions,
            load_if_exists=True,
        )
    except json.JSONDecodeError as error:
        raise _damaged(where) from error
    if study.metric_names is None and not study.get_trials(deepcopy=False):
        with catch_warnings():
            simplefilter("ignore")  # metric names are "experimental" since Optuna 3.2
            study.set_metric_names(metrics)
    # Optuna keeps the directions that the study had, without a word.
    stored = [direction.name.lower() for direction in study.directions]
    if study.metric_names != metrics or stored != directions:
        name = where if isinstance(where, Path) else "in this storage"
        raise InputError(
            f"the study {name} searches for {_in_words(study.metric_names or ['?'] * len(stored), stored)}, the experiment "
            f"for {_in_words(metrics, directions)}: objectives cannot change; start a new run"
        )
    return study


def _in_words(metrics: Sequence[str], directions: Sequence[str]) -> str:
    return ", ".join(f"{direction} {metric}" for metric, direction in zip(metrics, directions, strict=True))


def _check(experiment: Experiment, layers: Layers, baseline: dict[str, float]) -> None:
    """Finds before the first trial what would fail in every one."""
    objectives, limits = experiment.parsed_objectives, experiment.parsed_limits
    for metric in [objective.metric for objective in objectives] + [limit.metric for limit in limits]:
        if metric not in baseline:
            raise unknown_name("metric", metric, baseline)
    if experiment.seed < 0:
        raise InputError(f"a seed must be 0 or more, given {experiment.seed}")
    if isinstance(experiment.sampler, str):
        _sampler_named(experiment.sampler, experiment.seed, experiment.budget)
    elif not isinstance(experiment.sampler, BaseSampler):
        raise InputError(
            f"a sampler is one of {', '.join(SAMPLERS)}, or an Optuna sampler object; given {experiment.sampler!r}"
        )
    study = optuna.create_study(sampler=RandomSampler(seed=experiment.seed))
    distributions = {}
    for _ in range(_REHEARSALS):
        trial = study.ask()
        _sampled(experiment, layers, trial)
        distributions.update(trial.distributions)
    for params in experiment.start:
        for name, value in params.items():
            if name not in distributions:
                raise unknown_name("parameter of the search space", name, distributions)
            try:
                create_trial(state=TrialState.FAIL, params={name: value}, distributions={name: distributions[name]})
            except (ValueError, TypeError) as error:
                raise InputError(f"start: {name!r} cannot be {value!r}; it is a {distributions[name]}") from error
        study.enqueue_trial(params)
        _sampled(experiment, layers, study.ask())


def _sampler_named(name: str, seed: int, budget: Budget) -> BaseSampler:
    match name:
        case "tpe":
            return TPESampler(multivariate=True, seed=seed)
        case "nsga2":
            # Optuna's population of 50 would spend a budget of 50 trials on random ones.
            population = 50 if budget.trials is None else min(50, max(8, budget.trials // 5))
            return NSGAIISampler(population_size=population, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
    raise unknown_name("sampler", name, SAMPLERS)


def _sampled(experiment: Experiment, layers: Layers, trial: BaseTrial) -> Policy:
    """The canonical policy that the space makes. Raises `InputError` when there is none."""
    menu = experiment.target.menu
    try:
        policy = experiment.space(trial, layers, experiment.target)
        if not isinstance(policy, Policy):
            raise TypeError(f"it returned {policy!r}")
        policy.check(layers, menu)
        return policy.canonical(layers, menu)
    except ValidationError as error:
        raise _no_policy(first_problem(error)) from error
    except InputError as error:
        raise _no_policy(str(error)) from error
    except Exception as error:
        raise _no_policy(f"{type(error).__name__}: {error}") from error


def _no_policy(why: str) -> InputError:
    return InputError(f"the search space made no valid policy: {why.splitlines()[0]}")
