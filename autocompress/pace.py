"""How long a search will still take, by what its trials took so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from autocompress.experiment import Budget, Experiment
from autocompress.refitting import Refit, compute_without_training, seconds_a_step, trained_steps, wanted_steps
from autocompress.result import Status, TrialResult

# What a trial takes is the mean without the first quarter of them, but over so many at least: a search begins with
# students that are not trained.
_FEWEST = 10
_LATER = 0.75
# What a refit takes is the mean of so many of the latest, and of what is foretold, which counts as so many.
_LATEST_REFITS = 8
_FORETOLD_COUNTS = 4
# What a refit will take is the mean over so many of the latest complete trials.
_PARENTS = 30


@dataclass(frozen=True)
class _Took:
    """What a finished trial took: `elapsed` seconds on the clock of the search, `compute` worker-seconds."""

    refit: bool
    elapsed: float
    compute: float


@dataclass
class Pace:
    """Hears of the trials of one session, and foretells its end. Times are seconds on one clock, whichever.

    `began` is when the time of the budget began to run, `before` what earlier sessions have on record, `spent` the
    worker-seconds before the first trial of all.
    """

    experiment: Experiment
    began: float
    before: Sequence[TrialResult] = ()
    spent: float = 0.0
    _results: list[TrialResult] = field(init=False)
    _took: list[_Took] = field(init=False, default_factory=list)
    _running: dict[int, tuple[float, bool]] = field(init=False, default_factory=dict)
    _first: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._results = list(self.before)
        self._used = self.spent + sum(result.compute for result in self._results)
        self._sampled = sum(result.refit_of is None for result in self._results)

    @property
    def budget(self) -> Budget:
        return self.experiment.budget

    @property
    def sampled(self) -> int:
        """The finished trials that the budget counts: a refit is none."""
        return self._sampled

    @property
    def used(self) -> float:
        """Worker-seconds up to now, without the trials under way."""
        return self._used

    def started(self, number: int, now: float, *, refit: bool) -> None:
        """A trial begins. The pace is counted from the first: before it, workers started."""
        self._first = now if self._first is None else self._first
        self._running[number] = now, refit

    def finished(self, result: TrialResult, now: float) -> None:
        since, _ = self._running.pop(result.number, (now - result.compute, False))
        self._first = since if self._first is None else self._first
        refit = result.refit_of is not None
        self._took.append(_Took(refit, now - since, result.compute))
        self._results.append(result)
        self._used += result.compute
        self._sampled += not refit

    def share(self, now: float) -> float:
        """How much of the budget is used up, 0..1."""
        shares = [0.0]
        if self.budget.trials is not None:
            shares.append(self.sampled / self.budget.trials)
        if self.budget.minutes is not None:
            shares.append((now - self.began) / (self.budget.minutes * 60))
        if self.budget.worker_seconds is not None:
            shares.append(self.used / self.budget.worker_seconds)
        return min(1.0, max(shares))

    def seconds_left(self, now: float) -> float | None:
        """Until the search ends by its budget, refits included; None when nobody can tell yet.

        Time to sample ends by whichever part of the budget is first. Trials under way are finished after that. Where refits
        follow, they take what those that are due will take, and what is kept for them at most. That a search space is
        exhausted is not foreseen.
        """
        ends = [left for left in (self._by_trials(now), self._by_time(now), self._by_compute(now)) if left is not None]
        if not ends:
            return None
        refit = self.experiment.refit
        if refit is None:
            return max(0.0, min(ends))
        refits = self._refits(refit, now, sampling_over=min(ends) <= 0)
        most = [left for left in (self._by_time(now, 1.0), self._by_compute(now, 1.0)) if left is not None]
        if refits is None:
            return max(0.0, min(most)) if most else None
        return max(0.0, min([max(0.0, min(ends)) + refits, *most]))

    def _workers(self, now: float) -> float:
        """How many trials have been under way at once, on average."""
        busy = sum(one.elapsed for one in self._took) + sum(now - since for since, _ in self._running.values())
        first = now if self._first is None else self._first
        return busy / (now - first) if now > first else 0.0

    def _by_trials(self, now: float) -> float | None:
        usual, workers = self._usual(), self._workers(now)
        if self.budget.trials is None or usual is None or not workers:
            return None
        missing = self.budget.trials - self.sampled
        if missing <= 0:
            return 0.0
        if self.budget.minutes is not None or self.budget.worker_seconds is not None:
            workers *= self._sampling  # the others are at refits meanwhile
        lag = _lag(usual, workers) if self.experiment.refit is None else 0.0
        return max(0.0, missing * usual - self._under_way(now, usual, refit=False)) / workers + lag

    def _by_time(self, now: float, share: float | None = None) -> float | None:
        if self.budget.minutes is None:
            return None
        left = self.began + 60 * self.budget.minutes * (self._sampling if share is None else share) - now
        return left if self.experiment.refit is not None else max(0.0, left) + self._last_ones(now, left)

    def _by_compute(self, now: float, share: float | None = None) -> float | None:
        compute, elapsed = sum(one.compute for one in self._took), sum(one.elapsed for one in self._took)
        if self.budget.worker_seconds is None or not compute or not elapsed:
            return None
        speed = compute / elapsed * self._workers(now)  # worker-seconds a second
        under_way = sum(now - since for since, _ in self._running.values()) * compute / elapsed
        budget = self.budget.worker_seconds * (self._sampling if share is None else share)
        left = (budget - self.used - under_way) / speed
        if self.experiment.refit is None:
            return max(0.0, left) + self._last_ones(now, left)
        return left if share is None else left + _lag(elapsed / len(self._took), self._workers(now))

    @property
    def _sampling(self) -> float:
        """The share of a budget of time in which there is sampling."""
        return 1.0 if self.experiment.refit is None else 1 - self.experiment.refit.share

    def _last_ones(self, now: float, left: float) -> float:
        """How long the last trials go on when the time is up: of several that began anywhen, the last to end."""
        usual = self._usual()
        if usual is None:
            return 0.0
        if left <= 0:
            return max((usual - (now - since) for since, _ in self._running.values()), default=0.0)
        many = max(1.0, self._workers(now))
        return usual * many / (many + 1)

    def _usual(self) -> float | None:
        """What a sampled trial takes; None before the first has finished in this session."""
        here = [one.elapsed for one in self._took if not one.refit]
        if not here:
            return None
        earlier = [result.compute for result in self.before if result.refit_of is None and result.compute]
        known = [*earlier, *here]
        latest = known[-max(_FEWEST, round(_LATER * len(known))) :]
        return float(sum(latest) / len(latest))

    def _under_way(self, now: float, usual: float, *, refit: bool) -> float:
        return sum(min(now - since, usual) for since, kind in self._running.values() if kind == refit)

    def _at_once(self) -> int:
        return max(1, len(self._running))

    def _refits(self, refit: Refit, now: float, *, sampling_over: bool) -> float | None:
        """Seconds that the refits take which follow the sampling; None when nobody can tell: nothing was trained yet."""
        usual, workers = self._usual_refit(refit), self._workers(now)
        if usual is None or not workers:
            return None
        missing = refit.models * refit.seeds - (self._refits_done() if sampling_over else 0)
        under_way = self._under_way(now, usual, refit=True) if sampling_over else 0.0
        return max(0.0, missing * usual - under_way) / workers + _lag(usual, workers)

    def _refits_done(self) -> int:
        """How many refits were asked for after the last sampled trial."""
        last = max((result.number for result in self._results if result.refit_of is None), default=-1)
        return sum(result.number > last for result in self._results if result.refit_of is not None)

    def _usual_refit(self, refit: Refit) -> float | None:
        """What a refit takes: what those of this session took, or what training takes by the steps it will have."""
        here = [one.elapsed for one in self._took if one.refit][-_LATEST_REFITS:]
        foretold = self._foretold_refit(refit)
        if foretold is None:
            return sum(here) / len(here) if here else None
        return (sum(here) + _FORETOLD_COUNTS * foretold) / (len(here) + _FORETOLD_COUNTS)

    def _foretold_refit(self, refit: Refit) -> float | None:
        complete = [result for result in self._results if result.status is Status.COMPLETE and result.refit_of is None]
        compute, elapsed = sum(one.compute for one in self._took), sum(one.elapsed for one in self._took)
        if not compute or not any(result.policy.finetune.steps for result in complete):
            return None
        took = [self._foretold(refit, parent, complete) for parent in complete[-_PARENTS:]]
        return elapsed / compute * sum(took) / len(took)

    def _foretold(self, refit: Refit, parent: TrialResult, results: Sequence[TrialResult]) -> float:
        trained = trained_steps(parent.policy, results, usual=0)
        steps = wanted_steps(refit, parent, trained, results, self._worker_seconds())
        return compute_without_training(parent) + steps * seconds_a_step(parent, results)

    def _worker_seconds(self) -> float | None:
        """All that the budget gives to workers, as far as it bounds their time."""
        if self.budget.minutes is None:
            return self.budget.worker_seconds
        here = 60 * self.budget.minutes * self._at_once()
        return here if self.budget.worker_seconds is None else min(here, self.budget.worker_seconds)


def _lag(usual: float, workers: float) -> float:
    """How much later the last of several workers ends than they do on average, when each ends a trial anywhen."""
    return usual * max(0.0, workers - 1) / (2 * (workers + 1))
