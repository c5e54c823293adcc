"""Multi-objective successive halving: which trials are worth more training.

The rule of asynchronous successive halving (Li et al., 2020), with the order among trials by non-dominated rank and
then by hypervolume contribution (as in SMS-EMOA: Beume et al., 2007). It knows neither trials nor a study.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ExperimentError
from autocompress.front import loss_of, missed
from autocompress.objective import SCORE, Limit, Objective
from autocompress.result import Rung

Losses = Sequence[float] | NDArray[np.float64]
ManyLosses = Sequence[Losses] | NDArray[np.float64]

# So many trials have to be trained to their end before it is known what training wins back.
_FEWEST_TRAINED = 3
# The reference point lies that far, as a share of the range among the trials compared, beyond the worst of them: the
# worst in one objective has a contribution too.
_BEYOND = 0.1


@dataclass(frozen=True)
class Halving:
    """Early stopping: at each rung a trial goes on if it is among the best 1/`eta` of those that reached the rung.

    `rungs` are shares of the fine-tuning steps; at 0 a trial is judged by its exported file before any fine-tuning.
    """

    eta: float = 3.0
    rungs: tuple[float, ...] = (0.0, 1 / 3)

    def __post_init__(self) -> None:
        if self.eta <= 1:
            raise ExperimentError(f"halving needs an eta above 1, given {self.eta}")
        if not self.rungs or not all(0 <= rung < 1 for rung in self.rungs):
            raise ExperimentError(f"halving needs rungs from 0 up to, but not including, 1; given {self.rungs}")


class Ladder:
    """The rungs that the trials of a search have reached, and who goes on from there.

    Sizes and times are compared as logarithms. What a rung does not know of an objective (it is measured at the end
    only) does not count, nor do trials that do not know what it knows; a trial beyond a limit on what it does know is
    behind all that keep to it. So is one whose score would come to nothing (a limit on it missed, or no hypervolume) even if
    training won back, of what compression has lost, as large a part as it has in any trial so far: a very small model that
    cannot learn is dominated by none.
    """

    def __init__(
        self, halving: Halving, objectives: Sequence[Objective], limits: Sequence[Limit], baseline: dict[str, float]
    ) -> None:
        self._halving = halving
        self._objectives = objectives
        self._limits = limits
        self._baseline = baseline
        self._trials: dict[int, tuple[_Standing, ...]] = {}
        self._score = next((objective for objective in objectives if objective.metric == SCORE), None)
        self._trained: set[int] = set()  # to their end

    def reached(self, number: int, rungs: Sequence[Rung], steps: int) -> None:
        """Notes all the rungs that a trial of so many `steps` has reached so far."""
        self._trials[number] = tuple(self._standing(rung) for rung in rungs)
        if rungs and rungs[-1].step >= steps:
            self._trained.add(number)

    def goes_on(self, number: int, steps: int) -> bool:
        """Whether a trial of so many `steps` goes on from the last of its rungs."""
        now = self._trials[number][-1]
        if now.step not in {round(share * steps) for share in self._halving.rungs} or now.step >= steps:
            return True
        others = [_at(now.step, trial) for other, trial in self._trials.items() if other != number]
        there = [other for other in others if other is not None]
        won_back = self._won_back(now.step)
        able = [other for other in there if not self._is_behind(other, won_back)]
        if self._is_behind(now, won_back):
            return not able and self._among_best(now, there)
        return self._among_best(now, able)

    def _is_behind(self, standing: "_Standing", won_back: float) -> bool:
        """Whether it is beyond a limit, or its score would be worth nothing if it won back this part of what it has lost."""
        if standing.misses or self._score is None:
            return standing.misses
        lost = self._baseline[SCORE] - standing.score
        loses = self._score.better(self._baseline[SCORE], standing.score)
        hoped = {SCORE: standing.score + won_back * lost if loses else standing.score}
        limits = [limit for limit in self._limits if limit.metric == SCORE]
        return bool(missed(hoped, limits, self._baseline)) or loss_of(hoped, self._score, self._baseline) >= 1

    def _won_back(self, step: int) -> float:
        """The largest part of the lost score that any trial has won back since this step, 0..1; 1 while few are known."""
        parts = [self._part_won_back(step, self._trials[number]) for number in self._trained]
        known = [part for part in parts if part is not None]
        return min(1.0, max(0.0, *known)) if len(known) >= _FEWEST_TRAINED else 1.0

    def _part_won_back(self, step: int, trial: Sequence["_Standing"]) -> float | None:
        then = _at(step, trial)
        if then is None or self._score is None or not self._score.better(self._baseline[SCORE], then.score):
            return None
        return (trial[-1].score - then.score) / (self._baseline[SCORE] - then.score)

    def _among_best(self, now: "_Standing", others: Sequence["_Standing"]) -> bool:
        losses = np.array([now.losses, *(other.losses for other in others)])
        known = losses[:, ~np.isnan(losses[0])]
        if not known.size:
            return True
        comparable = known[~np.isnan(known).any(axis=1)]
        return goes_on(comparable[0], comparable[1:], self._halving.eta)

    def _standing(self, rung: Rung) -> "_Standing":
        return _Standing(rung.step, rung.accuracy, _losses(rung, self._objectives), self._misses(rung))

    def _misses(self, rung: Rung) -> bool:
        # Not by its score: that is what training is for.
        known = [limit for limit in self._limits if limit.metric in rung.metrics and limit.metric != SCORE]
        return bool(missed(rung.metrics, known, self._baseline))


def goes_on(candidate: Losses, others: ManyLosses, eta: float) -> bool:
    """True when `candidate` is among the best 1/eta of itself and the `others` that reached the same rung.

    Losses are to be small, one an objective, in the same order; each is scaled to the range that it has in all of them.
    Of equals the candidate is the last. A trial goes on while fewer than `eta` have reached the rung: nobody knows yet
    what is good.
    """
    count = len(others) + 1
    if count < eta:
        return True
    scaled = _scaled(np.concatenate([[candidate], others]))
    ranks = moocore.pareto_rank(scaled)
    places = math.ceil(count / eta) - int((ranks < ranks[0]).sum())
    return places > 0 and _outlasts(scaled[ranks == ranks[0]], places)


def _outlasts(layer: NDArray[np.float64], places: int) -> bool:
    """Whether the first of a layer is left when, one after another, those that contribute least go, until so many are left.

    All at once would not do: of two good ones that are nearly the same neither contributes much.
    """
    while len(layer) > places:
        least = int(_contributions(layer).argmin())
        if least == 0:
            return False
        layer = np.delete(layer, least, axis=0)
    return True


def _scaled(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = losses.min(axis=0), losses.max(axis=0)
    scaled: NDArray[np.float64] = (losses - low) / np.where(high > low, high - low, 1.0)
    return scaled


def _contributions(layer: NDArray[np.float64]) -> NDArray[np.float64]:
    if layer.shape[1] == 1:  # all are equal
        return np.zeros(len(layer))
    reference = np.full(layer.shape[1], 1 + _BEYOND)
    contributions: NDArray[np.float64] = moocore.hv_contributions(layer, ref=reference)
    return contributions


@dataclass(frozen=True)
class _Standing:
    """A rung as it is compared: the losses, NaN where the rung does not know, and whether it is beyond a limit."""

    step: int
    score: float
    losses: tuple[float, ...]
    misses: bool


def _at(step: int, trial: Sequence[_Standing]) -> _Standing | None:
    """How a trial stood when it had trained so many steps; None when it never had."""
    if not trial or trial[-1].step < step:
        return None
    for standing in reversed(trial):
        if standing.step <= step:
            return standing
    return None


def _losses(rung: Rung, objectives: Sequence[Objective]) -> tuple[float, ...]:
    metrics = {**rung.metrics, SCORE: rung.accuracy}
    return tuple(_loss(objective, metrics.get(objective.metric, math.nan)) for objective in objectives)


def _loss(objective: Objective, value: float) -> float:
    if objective.is_cost:
        return math.log(max(value, 1e-9))
    return value if objective.goal == "min" else -value
