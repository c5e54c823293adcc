"""How long a search will still take, by what its trials took so far."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

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
# What a refit will take is the mean over so many of the latest complete trials, by what so many of them took.
_PARENTS = 30
_KNOWN = 200


@dataclass(frozen=True)
class Earlier:
    """What earlier sessions of a search have left: their `results`, and what they have used of the budget.

    `spent` are the worker-seconds before the first trial of all, on sensitivities and costs, `searched` seconds of its minutes.
    """

    results: tuple[TrialResult, ...] = ()
    spent: float = 0.0
    searched: float = 0.0


class Pace:
    """Hears of the trials of one session, and foretells its end. Times are seconds on one clock, whichever.

    `began` is when the time of the budget began to run, `before` what earlier sessions have on record, `spent` the
    worker-seconds before the first trial of all. Takes as long for thousands of trials as for a few.
    """

    def __init__(self, experiment: Experiment, began: float, before: Sequence[TrialResult] = (), spent: float = 0.0) -> None:
        self.experiment, self.began = experiment, began
        self._used = spent
        self._first: float | None = None
        self._running: dict[int, tuple[float, bool]] = {}
        # Of what has finished in this session: how many, their seconds on the clock, their worker-seconds.
        self._ended, self._elapsed, self._compute = 0, 0.0, 0.0
        self._sampled = self._sampled_here = 0
        self._sums = [0.0]  # of what samples took, one after another
        self._complete: deque[TrialResult] = deque(maxlen=_KNOWN)
        self._refit_numbers: list[int] = []
        self._refit_times: deque[float] = deque(maxlen=_LATEST_REFITS)
        self._last_sampled = -1
        self._foretold: float | None = None
        for result in before:
            self._count(result, result.compute)
        self._foretell()

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
        self._ended += 1
        self._elapsed += now - since
        self._compute += result.compute
        if result.refit_of is None:
            self._sampled_here += 1
        else:
            self._refit_times.append(now - since)
        self._count(result, now - since)
        self._foretell()

    def _count(self, result: TrialResult, took: float) -> None:
        self._used += result.compute
        if result.refit_of is not None:
            self._refit_numbers.append(result.number)
            return
        self._sampled += 1
        self._sums.append(self._sums[-1] + took)
        self._last_sampled = max(self._last_sampled, result.number)
        if result.status is Status.COMPLETE:
            self._complete.append(result)

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
        busy = self._elapsed + sum(now - since for since, _ in self._running.values())
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
        if self.budget.worker_seconds is None or not self._compute or not self._elapsed:
            return None
        busy = self._compute / self._elapsed
        speed = busy * self._workers(now)  # worker-seconds a second
        under_way = busy * sum(now - since for since, _ in self._running.values())
        budget = self.budget.worker_seconds * (self._sampling if share is None else share)
        left = (budget - self.used - under_way) / speed
        if self.experiment.refit is None:
            return max(0.0, left) + self._last_ones(now, left)
        return left if share is None else left + _lag(self._elapsed / self._ended, self._workers(now))

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
            return max(0.0, *(usual - (now - since) for since, _ in self._running.values()), 0.0)
        many = max(1.0, self._workers(now))
        return usual * many / (many + 1)

    def _usual(self) -> float | None:
        """What a sampled trial takes; None before the first has finished in this session."""
        if not self._sampled_here:
            return None
        many = len(self._sums) - 1
        latest = min(many, max(_FEWEST, round(_LATER * many)))
        return (self._sums[-1] - self._sums[many - latest]) / latest

    def _under_way(self, now: float, usual: float, *, refit: bool) -> float:
        return sum(min(now - since, usual) for since, kind in self._running.values() if kind == refit)

    def _at_once(self) -> int:
        return max(1, len(self._running))

    def _refits(self, refit: Refit, now: float, *, sampling_over: bool) -> float | None:
        """Seconds that the refits take which follow the sampling; None when nobody can tell: nothing was trained yet."""
        usual, workers = self._usual_refit(), self._workers(now)
        if usual is None or not workers:
            return None
        missing = refit.models * refit.seeds - (self._refits_done() if sampling_over else 0)
        under_way = self._under_way(now, usual, refit=True) if sampling_over else 0.0
        return max(0.0, missing * usual - under_way) / workers + _lag(usual, workers)

    def _refits_done(self) -> int:
        """How many refits were asked for after the last sampled trial."""
        return sum(number > self._last_sampled for number in self._refit_numbers)

    def _usual_refit(self) -> float | None:
        """What a refit takes: what those of this session took, and what training takes by the steps it will have."""
        here, many = sum(self._refit_times), len(self._refit_times)
        if self._foretold is None or not self._compute:
            return here / many if many else None
        foretold = self._elapsed / self._compute * self._foretold
        return (here + _FORETOLD_COUNTS * foretold) / (many + _FORETOLD_COUNTS)

    def _foretell(self) -> None:
        """The worker-seconds of a refit, as the search would ask for it."""
        refit, known = self.experiment.refit, list(self._complete)
        if refit is not None and any(result.policy.finetune.steps for result in known):
            took = [self._refit_compute(refit, parent, known) for parent in known[-_PARENTS:]]
            self._foretold = sum(took) / len(took)

    def _refit_compute(self, refit: Refit, parent: TrialResult, known: Sequence[TrialResult]) -> float:
        trained = trained_steps(parent.policy, known, usual=0)
        steps = wanted_steps(refit, parent, trained, known, self._worker_seconds())
        return compute_without_training(parent) + steps * seconds_a_step(parent, known)

    def _worker_seconds(self) -> float | None:
        """All that the budget gives to workers, as far as it bounds their time."""
        if self.budget.minutes is None:
            return self.budget.worker_seconds
        here = 60 * self.budget.minutes * self._at_once()
        return here if self.budget.worker_seconds is None else min(here, self.budget.worker_seconds)


def _lag(usual: float, workers: float) -> float:
    """How much later the last of several workers ends than they do on average, when each ends a trial anywhen."""
    return usual * max(0.0, workers - 1) / (2 * (workers + 1))
