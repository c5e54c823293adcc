"""The search: one stored Optuna study that is asked for policies and told what came of them."""

import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial

from autocompress.errors import InputError, unknown_name
from autocompress.experiment import Experiment
from autocompress.front import FrontSoFar, ParetoFront, missed, unusable
from autocompress.halving import Ladder
from autocompress.layer import Layers
from autocompress.policy import Distill, Policy
from autocompress.refitting import (
    compute_without_training,
    hoped,
    next_to_refit,
    seconds_a_step,
    trained_steps,
    trains,
    wanted_steps,
)
from autocompress.result import Rung, Status, TrialResult
from autocompress.sampling import SAMPLERS, asked_for, rehearse, sampled, sampler_named, spread, start_params
from autocompress.shared import DUPLICATE, Share, SharedStudy
from autocompress.study import open_journal, open_study
from autocompress.trial_files import CHECKPOINT

if TYPE_CHECKING:
    from autocompress.prior import Prior

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

# When so many trials have ended in a session, all by the same failure, no other policy will do better.
_FAILED_ALIKE = 5
_FIGURES = re.compile(r"[0-9][0-9.]*")

_LOST = "the study has lost this trial"
# Fewer trials there have to be before the first is trained further.
_FEWEST_TO_CHOOSE_FROM = 8


@dataclass(frozen=True)
class Asked:
    """A trial to run: `number` is Optuna's, `policy` is canonical, `seed` follows from the experiment's seed and the number.

    With `refit_of` it goes on from the checkpoint of that trial; `checkpoint_sha256` is its sum (None: not on record).
    """

    number: int
    policy: Policy
    seed: int
    refit_of: int | None = None
    checkpoint_sha256: str | None = None


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
    keeps its own random state, which a new session begins anew.) TPE goes by the latest 500 trials and 100 of the front.

    **Shared studies.** Several searches may work on one study, each with a record of its own: together they run as many trials
    as the budget says. Time and worker-seconds, halving, refits and the front are each one's own.

    **Rungs.** Every rung of a running trial is reported; the answer says whether the trial goes on. The best are asked for
    once more as refits, each a trial of its own with the parameters of the first: when the sampling is over and, of a budget
    of time, whenever refits have had less than their share of the compute since there are some to choose from.

    `prior` is what a guided space is given, `spent` the worker-seconds it took to make. `baseline` holds the metrics of
    the uncompressed model, `study` the file of a journal, any Optuna storage, or a study that is shared with other searches.
    The time of the budget runs from here, and `searched` seconds of it have passed.
    Raises `InputError` for what the user can mend: a metric or sampler that does not exist, a space that makes invalid
    policies, start parameters that the space does not have, a study of another search.
    """

    def __init__(
        self,
        experiment: Experiment,
        layers: Layers,
        baseline: dict[str, float],
        *,
        study: Path | BaseStorage | SharedStudy,
        recorded: Sequence[TrialResult] = (),
        prior: "Prior | None" = None,
        spent: float = 0.0,
        searched: float = 0.0,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._experiment = experiment
        self._layers = layers
        self._objectives = experiment.parsed_objectives
        self._limits = experiment.parsed_limits
        self._baseline = baseline
        self._prior = prior
        _check(experiment, baseline)
        self._usual_steps = rehearse(experiment, layers, prior)
        self._results: list[TrialResult] = []
        self._front = self._front_of(())
        self._sampled = 0  # of the results: without refits
        self._told: set[int] = set()
        self._finished: dict[str, TrialResult] = {}  # by the key of the policy
        self._running: dict[int, Asked] = {}
        self._trials: dict[int, Trial] = {}  # Optuna's side of the running ones
        self._twins: dict[str, list[Trial]] = {}  # by key: trials that wait for a running one with the same policy
        self._pending: deque[Trial] = deque()  # under way when an earlier session ended
        self._rungs: dict[int, list[Rung]] = {}  # of the running ones
        self._refits: dict[int, list[int]] = {}  # by the trial that was refitted: the numbers of its refits
        self._last_sampled = -1
        self._repeats = 0
        self._reason: str | None = None
        self._endings: set[str | None] = set()  # of this session: failures without their figures, None for all else
        self._told_here = 0
        self._hopeless = False
        self._spent = spent
        self._began = time.monotonic() - searched
        halving = experiment.halving
        self._ladder = Ladder(halving, self._objectives, self._limits, baseline) if halving is not None else None
        self._share: Share | None = None
        if isinstance(study, SharedStudy):
            self._storage = study.storage
            self._study = open_study(self._storage, experiment, study.name, name=study.name)
            self._share = Share(self._study, study.run, layers)
        else:
            self._storage = open_journal(study) if isinstance(study, Path) else study
            self._study = open_study(self._storage, experiment, study)
        self._go_on(recorded)
        for params in start_params(experiment, prior):
            self._study.enqueue_trial(params, skip_if_exists=True)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """All recorded and told results, in that order; a complete one without usable metrics is a failed one here."""
        return tuple(self._results)

    @property
    def front(self) -> ParetoFront:
        return self._front.front

    @property
    def hypervolumes(self) -> list[float]:
        """The hypervolume of the front after each of `results`; computed anew, which takes its time when there are many."""
        so_far = self._front_of(())
        return list(accumulate((so_far.add(result).hypervolume() for result in self._results), max))

    @property
    def running(self) -> tuple[Asked, ...]:
        return tuple(self._running.values())

    @property
    def reason(self) -> str | None:
        """Why the search asks for nothing more; None while it goes on."""
        return self._reason

    @property
    def hopeless(self) -> bool:
        """True when the search was given up, because all trials of this session failed for the same reason."""
        return self._hopeless

    def stop(self, reason: str) -> None:
        """Nothing more is asked for; what is under way may still be told."""
        self._reason = reason

    @property
    def used_seconds(self) -> float:
        """The worker-seconds used up so far, those of running trials up to their latest rung included."""
        return self._spent + sum(rungs[-1].seconds for rungs in self._rungs.values() if rungs)

    def ask(self) -> Asked | None:
        """The next trial to run, or None when there is none: `reason` says why.

        Raises `InputError` when the space makes no valid policy.
        """
        while (trial := self._next()) is not None:
            policy = self._policy_of(trial)
            parent = trial.user_attrs.get("refit_of")
            asked = Asked(
                number=trial.number,
                policy=policy,
                seed=self._seed(trial.number, "trial"),
                refit_of=parent,
                checkpoint_sha256=None if parent is None else self._checkpoint_sha256(parent),
            )
            key = _key(asked)
            if key in self._finished:
                self._close(trial, self._finished[key])
            elif key in self._twins:
                if self._share is not None:  # it does not count, and others count too
                    first = next(number for number, one in self._running.items() if _key(one) == key)
                    trial.set_user_attr(DUPLICATE, first)
                self._twins[key].append(trial)
            elif self._share is not None and self._share.repeats_anothers(trial, key):
                pass
            else:
                self._repeats = 0
                if asked.refit_of is None:
                    self._last_sampled = max(self._last_sampled, trial.number)
                self._twins[key] = []
                self._trials[trial.number] = trial
                self._running[trial.number] = asked
                self._rungs[trial.number] = []
                return asked
            self._repeats += 1
        return None

    def report(self, number: int, rung: Rung) -> bool:
        """Takes the next rung of a running trial; False when the trial is to be stopped there."""
        asked, rungs = self._running[number], self._rungs[number]
        rungs.append(rung)
        if self._ladder is None or not trains(asked.policy, asked.refit_of):
            return True
        self._ladder.reached(number, rungs, asked.policy.finetune.steps)
        return self._ladder.goes_on(number, asked.policy.finetune.steps)

    def tell(self, result: TrialResult) -> None:
        """Takes the result of a trial that was asked for; a second one of the same number is ignored.

        A complete result whose objectives or limits cannot be computed is taken as failed. When all trials of the session so
        far failed for the same reason the search is stopped.
        """
        if result.number in self._told:
            return
        asked = self._running.pop(result.number, None)
        if asked is None:
            raise ValueError(f"trial {result.number} was told, but never asked for")
        del self._rungs[result.number]
        judged = self._take(result)
        self._front.add(judged)
        for trial in (self._trials.pop(result.number), *self._twins.pop(_key(asked))):
            self._close(trial, judged)
        if asked.refit_of is None:  # of a few refits whose checkpoints are damaged nothing follows for others
            self._endings.add(_FIGURES.sub("#", judged.error or "") if judged.status is Status.FAILED else None)
            self._told_here += 1
        if self._told_here >= _FAILED_ALIKE and len(self._endings) == 1 and None not in self._endings and not self._reason:
            self._hopeless = True
            self.stop(f"all of {self._told_here} trials failed for the same reason: {judged.error}; mend that, then resume")

    def _front_of(self, results: Sequence[TrialResult]) -> FrontSoFar:
        scoring = self._experiment.task.scoring
        return FrontSoFar(self._objectives, self._limits, self._baseline, results, scoring=scoring)

    def _checkpoint_sha256(self, number: int) -> str | None:
        parent = next((result for result in self._results if result.number == number), None)
        return None if parent is None else parent.sha256.get(CHECKPOINT)

    def _next(self) -> Trial | None:
        """A trial of the study: one that was under way, a new one, or a refit; None, with a reason, when all is done."""
        if self._reason is not None:
            return None
        why = self._sampling_over()
        while self._pending:
            trial = self._pending.popleft()
            if why is None or "refit_of" in trial.user_attrs:
                return trial
        if why is None:
            early = self._next_refit(self._to_refit()) if self._refit_is_due() else None
            return early or self._new()
        parent = self._to_refit()
        if parent is None and self._may_refit_more() and self._sampling_over(but_refits=False) is None:
            return self._new()  # no trial promises more by further training: its time is for others
        refit = self._next_refit(parent)
        if refit is None:
            many = self._refitted()
            self._reason = f"{why}; {many} of the best were trained further" if many else why
        return refit

    def _new(self) -> Trial | None:
        """A trial that the sampler has still to fill in. Of a shared study it may turn out to be one too many."""
        trial = self._study.ask()
        if self._share is None or self._share.takes(trial, self._experiment.budget.trials):
            return trial
        return self._next()

    @property
    def _counted(self) -> int:
        """The trials of the budget that are over or under way, whoever runs them."""
        if self._share is not None:
            return self._share.sampled(but=[trial.number for trial in self._pending])
        return self._sampled + sum(asked.refit_of is None for asked in self._running.values())

    def _sampling_over(self, *, but_refits: bool = True) -> str | None:
        """Why nothing more is sampled; with `but_refits`, also when the rest of the time is theirs."""
        budget, refit = self._experiment.budget, self._experiment.refit
        share = 1.0 if refit is None or not but_refits else 1 - refit.share
        if budget.trials is not None and self._counted >= budget.trials:
            return f"the budget of {budget.trials} trials is used up"
        if budget.minutes is not None and time.monotonic() >= self._began + 60 * budget.minutes * share:
            return f"the time of {budget.minutes:g} minutes is up"
        if budget.worker_seconds is not None and self.used_seconds >= budget.worker_seconds * share:
            return f"the {budget.worker_seconds:g} worker-seconds are used up"
        if self._repeats >= EXHAUSTED_AFTER:
            return f"{self._repeats} policies in a row had been run before: the search space is exhausted"
        return None

    def _may_refit_more(self) -> bool:
        refit = self._experiment.refit
        return refit is not None and self._refitted() < refit.models and self._last_sampled >= 0

    def _refit_is_due(self) -> bool:
        """Whether refits have had less than their share of the compute, of a budget of time."""
        budget, refit = self._experiment.budget, self._experiment.refit
        if refit is None or (budget.minutes is None and budget.worker_seconds is None):
            return False
        if self._last_sampled < _FEWEST_TO_CHOOSE_FROM - 1:
            return False
        running = sum(asked.refit_of is not None for asked in self._running.values())
        later = [result for result in self._results if result.number >= _FEWEST_TO_CHOOSE_FROM]
        refits = sum(result.compute for result in later if result.refit_of is not None)
        return running <= refit.share * len(self._running) and refits <= refit.share * sum(result.compute for result in later)

    def _to_refit(self) -> TrialResult | None:
        """The trial that lacks a seed, or else is most worth further training; None when there is none, or no more refits."""
        refit = self._experiment.refit
        if refit is None:
            return None
        open_ones = [parent for parent, numbers in self._refits.items() if 0 < len(numbers) < refit.seeds]
        if open_ones:
            return next(result for result in self._results if result.number == open_ones[0])
        if self._refitted() >= refit.models:
            return None
        return next_to_refit(
            self._results,
            self._objectives,
            self._limits,
            self._baseline,
            taken=self._refits,
            scoring=self._experiment.task.scoring,
        )

    def _next_refit(self, parent: TrialResult | None) -> Trial | None:
        """Further training of `parent` as a new trial of the study. None when there is no time left for it."""
        refit = self._experiment.refit
        if refit is None or parent is None:
            return None
        like = parent.policy if parent.policy.finetune.steps else self._as_asked_for(parent.number)
        trained = trained_steps(like, self._results, usual=self._usual_steps)
        steps = self._affordable(parent, wanted_steps(refit, parent, trained, self._results, self._worker_seconds))
        if steps < max(1, trained // 2):
            return None
        finetune = like.finetune.model_copy(update={"steps": steps})
        return self._refit_trial(parent, parent.policy.model_copy(update={"finetune": finetune, "distill": like.distill}))

    def _as_asked_for(self, number: int) -> Policy:
        """How a trial that was not trained would have been: that is in its parameters, not in its policy."""
        params = self._study.get_trials(deepcopy=False)[number].params
        try:
            return asked_for(self._experiment, self._layers, FixedTrial(params), self._prior)
        except InputError:  # the study has lost them
            return Policy(distill=Distill())

    def _refitted(self) -> int:
        """How many were refitted since the sampling ended: one that goes on with a larger budget has refits of its own."""
        return sum(numbers[0] > self._last_sampled for numbers in self._refits.values())

    @property
    def _worker_seconds(self) -> float | None:
        """All that the budget gives to workers, as far as it bounds their time."""
        budget = self._experiment.budget
        if budget.minutes is None:
            return budget.worker_seconds
        here = 60 * budget.minutes * (len(self._running) + 1)
        return here if budget.worker_seconds is None else min(here, budget.worker_seconds)

    def _affordable(self, parent: TrialResult, steps: int) -> int:
        """So many steps, or as many as there is time left for."""
        budget, a_step = self._experiment.budget, seconds_a_step(parent, self._results)
        left = []
        if budget.minutes is not None:
            left.append(self._began + 60 * budget.minutes - time.monotonic())
        if budget.worker_seconds is not None:
            running = [asked.policy.finetune.steps for asked in self._running.values()]
            left.append(budget.worker_seconds - self._spent - sum(running) * a_step)
        if not left:
            return steps
        rest = compute_without_training(parent)
        return min(steps, int(max(0.0, min(left) - rest) / max(a_step, 1e-6)))

    def _refit_trial(self, parent: TrialResult, policy: Policy) -> Trial:
        stored = self._study.get_trials(deepcopy=False)[parent.number]
        template = create_trial(
            state=TrialState.RUNNING,
            params=stored.params,
            distributions=stored.distributions,
            user_attrs={"refit_of": parent.number, "policy": policy.to_json(), **(self._share.mark if self._share else {})},
        )
        study = self._storage.get_study_id_from_name(self._study.study_name)
        trial = Trial(self._study, self._storage.create_new_trial(study, template_trial=template))
        self._refits.setdefault(parent.number, []).append(trial.number)
        return trial

    def _policy_of(self, trial: Trial) -> Policy:
        """What the trial was stored with, or else what the space makes of it."""
        number = trial.number
        if stored := trial.user_attrs.get("policy"):
            policy = Policy.from_json(stored, source=f"trial {number} of the study")
            policy.check(self._layers, self._experiment.target.menu)
            return policy
        self._study.sampler = self._sampler(number)
        try:
            policy = sampled(self._experiment, self._layers, trial, self._prior)
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
        best = spread((*self.front.members, *self.front.nearest), self._objectives[0].metric)
        return sampler_named(name, self._seed(number, "sampler"), self._experiment.budget, best=best)

    def _seed(self, number: int, purpose: Literal["trial", "sampler"]) -> int:
        spawn = (number, 0 if purpose == "trial" else 1)
        return int(np.random.SeedSequence(self._experiment.seed, spawn_key=spawn).generate_state(1)[0])

    def _take(self, result: TrialResult) -> TrialResult:
        if result.status is Status.COMPLETE and (problem := unusable(result.metrics, self._objectives, self._limits)):
            result = result.model_copy(update={"status": Status.FAILED, "error": problem})
        self._told.add(result.number)
        self._results.append(result)
        self._finished.setdefault(_key(result), result)
        self._spent += result.compute
        if result.refit_of is None:
            self._sampled += 1
            self._last_sampled = max(self._last_sampled, result.number)
        # One without training has reached no rung that another might go on from: the best of them are better there.
        if self._ladder is not None and trains(result.policy, result.refit_of):
            self._ladder.reached(result.number, result.rungs, result.policy.finetune.steps)
        return result

    def _close(self, trial: Trial, result: TrialResult) -> None:
        """Ends a trial of the study with a result: its own or, for a repeated policy, that of the trial that was run."""
        state = STATES[result.status]
        values = None
        if trial.number != result.number:
            trial.set_user_attr(DUPLICATE, result.number)
        if state is TrialState.COMPLETE:
            values = [result.metrics[objective.metric] for objective in self._objectives]
            # What training may bring within a limit, the sampler is not to keep away from.
            untrained = self._experiment.refit is not None and not result.policy.finetune.steps
            judged = hoped(result, self._objectives, self._baseline) if untrained else result.metrics
            beyond = missed(judged, self._limits, self._baseline)
            for limit in self._limits:
                if limit.text not in trial.constraints:
                    excess = limit.excess(judged, self._baseline)
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
                results[result.number] = self._take(result)
                if result.refit_of is not None:
                    self._refits.setdefault(result.refit_of, []).append(result.number)
        # All at once: the front after each of thousands is nobody's concern.
        self._front = self._front_of(self._results)
        trials = self._study.get_trials(deepcopy=False)
        last = max(results, default=-1)
        if self._share is not None and last >= len(trials):
            raise InputError(
                f"the study {self._study.study_name!r} has {len(trials)} trials, the record of this run one numbered {last}: "
                "it is not the study that this run worked on"
            )
        for _ in range(len(trials), last + 1):
            # Keeps the number. Without parameters a complete trial would end TPE's joint sampling.
            self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"error": _LOST}))
        for trial in trials:
            if trial.state.is_finished() or (self._share is not None and not self._share.is_mine(trial)):
                continue
            known = results.get(trial.number)
            key = _stored_key(trial)
            if known is not None and key != _key(known):
                self._storage.set_trial_user_attr(self._id(trial), "error", _LOST)
                self._storage.set_trial_state_values(self._id(trial), TrialState.FAIL)
            elif known is not None:
                self._close(Trial(self._study, self._id(trial)), known)
            elif key in self._finished:
                self._close(Trial(self._study, self._id(trial)), self._finished[key])
            elif trial.state is TrialState.RUNNING:
                self._pending.append(Trial(self._study, self._id(trial)))
                if (parent := trial.user_attrs.get("refit_of")) is not None:
                    self._refits.setdefault(parent, []).append(trial.number)

    def _id(self, trial: FrozenTrial) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)


def _key(trial: Asked | TrialResult) -> str:
    """What trials that would come to the same share; a refit shares it with none, for its seed is its own."""
    key = trial.policy.key()
    return key if trial.refit_of is None else f"{key}-{trial.refit_of}-{trial.number}"


def _stored_key(trial: FrozenTrial) -> str | None:
    """What `_key` gave for a trial of the study; None when its policy was not made yet."""
    policy, refit_of = trial.user_attrs.get("policy"), trial.user_attrs.get("refit_of")
    if policy is None or refit_of is None:
        return trial.user_attrs.get("key") if policy is not None else None
    return _key(Asked(trial.number, Policy.from_json(policy, source=f"trial {trial.number} of the study"), 0, refit_of))


def _check(experiment: Experiment, baseline: dict[str, float]) -> None:
    """Finds before the first trial what would fail in every one."""
    objectives, limits = experiment.parsed_objectives, experiment.parsed_limits
    for metric in [objective.metric for objective in objectives] + [limit.metric for limit in limits]:
        if metric not in baseline:
            raise unknown_name("metric", metric, baseline)
    if experiment.seed < 0:
        raise InputError(f"a seed must be 0 or more, given {experiment.seed}")
    if isinstance(experiment.sampler, str):
        sampler_named(experiment.sampler, experiment.seed, experiment.budget)
    elif not isinstance(experiment.sampler, BaseSampler):
        raise InputError(
            f"a sampler is one of {', '.join(SAMPLERS)}, or an Optuna sampler object; given {experiment.sampler!r}"
        )
