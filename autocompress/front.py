"""Which results are worth having: dominance, the Pareto front, its hypervolume, and which of it to pick."""

import math
from collections.abc import Container, Sequence
from typing import Literal, Self

import moocore
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from autocompress.noun import Noun
from autocompress.objective import SCORE, USUAL, Limit, Objective, Scoring, base_of
from autocompress.result import Status, TrialResult

Pick = Literal["knee", "smallest", "fastest", "best"]

# A score counts between the baseline's and 10 % of it worse.
SCORE_RANGE = 0.1


def dominates(left: dict[str, float], right: dict[str, float], objectives: Sequence[Objective]) -> bool:
    """True when `left` is nowhere worse than `right` and somewhere better."""
    pairs = [(objective, left[objective.metric], right[objective.metric]) for objective in objectives]
    return not any(o.better(b, a) for o, a, b in pairs) and any(o.better(a, b) for o, a, b in pairs)


class TestScore(Noun):
    """The score of an exported file on the test split, with its 95 % confidence interval and the number of examples."""

    __test__ = False  # the name begins like a test class; pytest must not collect it

    accuracy: float
    low: float
    high: float
    examples: int


class Spread(Noun):
    """The validation scores of one policy trained with several seeds: their mean and standard deviation."""

    seeds: int
    mean: float
    deviation: float


class ParetoFront(Noun):
    """The complete results that meet all limits and that no other such result dominates, best first objective first.

    Of the refits of one trial with several seeds the one nearest to their mean score stands for all, and `spread` holds
    the mean and the deviation by its number; it takes the place of the trial itself unless it scores worse. `doubtful`
    maps a member to another that is smaller or faster and whose score is no worse outside the noise of the seeds.
    `baseline` holds the metrics of the uncompressed model, `scoring` what is known of scores. Results that lack a metric, or
    have one that is not finite, are left out. When no result meets all limits there are no members, and `nearest` holds up
    to three complete results that miss them by least. `test` holds the final scores by trial number, `baseline_test` the
    uncompressed model's: measured once, when the search is over.
    """

    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...] = ()
    scoring: Scoring = USUAL
    baseline: dict[str, float]
    members: tuple[TrialResult, ...] = ()
    nearest: tuple[TrialResult, ...] = ()
    spread: dict[int, Spread] = {}
    doubtful: dict[int, int] = {}
    test: dict[int, TestScore] = {}
    baseline_test: TestScore | None = None

    @model_validator(mode="after")
    def _has_what_counts(self) -> Self:
        if gone := [one.metric for one in self.objectives if one.metric not in self.baseline]:
            raise ValueError(f"the uncompressed model has no {gone[0]}")
        for result in (*self.members, *self.nearest):
            if why := unusable(result.metrics, self.objectives, self.limits):
                raise ValueError(f"trial {result.number}: {why}")
        return self

    @classmethod
    def of(
        cls,
        results: Sequence[TrialResult],
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        baseline: dict[str, float],
        scoring: Scoring = USUAL,
    ) -> "ParetoFront":
        complete = [
            result
            for result in results
            if result.status is Status.COMPLETE and unusable(result.metrics, objectives, limits) is None
        ]
        within = {result.number for result in complete if not missed(result.metrics, limits, baseline)}
        judged, spread = _without_twins(complete, scoring, within)
        feasible = [result for result in judged if result.number in within]
        front = _non_dominated(feasible, objectives)
        first = objectives[0]
        sign = 1 if first.goal == "min" else -1
        front.sort(key=lambda result: (sign * result.metrics[first.metric], result.number))
        nearest: list[TrialResult] = []
        if not feasible:
            nearest = sorted(judged, key=lambda result: relative_excess(result.metrics, limits, baseline))[:3]
        shown = {result.number: spread[result.number] for result in (*front, *nearest) if result.number in spread}
        return cls(
            objectives=tuple(objectives),
            limits=tuple(limits),
            scoring=scoring,
            baseline=baseline,
            members=tuple(front),
            nearest=tuple(nearest),
            spread=shown,
            doubtful=_doubtful(front, objectives, shown, scoring),
        )

    @property
    def further_latencies(self) -> dict[str, str]:
        """The latencies at further targets that were optimised: metric -> name of the target."""
        names = [objective.metric for objective in self.objectives]
        return {name: name.partition("/")[2] for name in names if base_of(name) == "latency_ms" != name}

    def hypervolume(self) -> float:
        """The share of the box between the baseline and the ideal that the front dominates, 0..1.

        Every objective is scaled so that the baseline is 1 and the ideal 0 (`loss_of`); the reference point is the
        corner where all are 1, for a score 10 % below the baseline. Computed by moocore (Guerreiro et al., 2021).
        """
        return hypervolume([member.metrics for member in self.members], self.objectives, self.baseline)

    def pick(self, how: Pick, *, max_drop: float | None = None, latency: str = "latency_ms") -> TrialResult | None:
        """One member: the `smallest`, the `fastest`, the `best` (by score), or the `knee`.

        `max_drop` leaves out members whose score is more than that worse than the baseline's; None is `usual_drop`, or no
        bound but the limits where they bound the score (the knee keeps to both). `latency` is what the fastest has least of.
        The knee is the member
        nearest to the ideal when every objective is scaled to the range of the front (sizes and times as logarithms).
        None when nothing is left.
        """
        if max_drop is None:
            limited = how != "knee" and any(limit.metric == SCORE for limit in self.limits)
            max_drop = math.inf if limited else self.usual_drop()
        members = [m for m in self.members if self.drop(m) <= max_drop + 1e-9]
        if not members:
            return None
        if how == "smallest":
            return min(members, key=lambda m: m.metrics["size_bytes"])
        if how == "fastest":
            return min(members, key=lambda m: m.metrics[latency])
        if how == "best":
            return min(members, key=lambda m: (self.drop(m), m.metrics["size_bytes"]))
        return members[int(_distances_to_ideal(members, self.objectives, self.baseline).argmin())]

    def drop(self, result: TrialResult) -> float:
        """By how much its score is worse than the baseline's; below 0 where it is better."""
        return -self.scoring.gain(result.metrics[SCORE], self.baseline[SCORE])

    def usual_drop(self) -> float:
        """What a pick may lose: one point (`Scoring.one_percent`); where none keeps to that, one more than the best loses."""
        point = self.scoring.one_percent(self.baseline[SCORE])
        least = min(map(self.drop, self.members), default=0.0)
        return point if least <= point else least + point

    def recommended(self) -> TrialResult | None:
        """The knee."""
        return self.pick("knee")


class FrontSoFar:
    """`ParetoFront.of` all `results` added so far, without going through all of them for each.

    The front of the front and one more is the front of all. Only refits of one trial are judged together: they and what
    they go on from stay at hand, and a further one, which may bring back what the ones before had driven out, is judged
    among all.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        baseline: dict[str, float],
        results: Sequence[TrialResult] = (),
        *,
        scoring: Scoring = USUAL,
    ) -> None:
        self._objectives, self._limits, self._baseline, self._scoring = objectives, limits, baseline, scoring
        self._results = list(results)
        self._together = _refitted(self._results)
        self._front = self._of(self._results)

    @property
    def front(self) -> ParetoFront:
        return self._front

    def add(self, result: TrialResult) -> ParetoFront:
        """The front with `result`."""
        self._results.append(result)
        if result.refit_of is None:
            known = {one.number: one for one in (*self._together, *self._front.members, *self._front.nearest, result)}
            self._front = self._of(list(known.values()))
        else:
            self._together = _refitted(self._results)
            self._front = self._of(self._results)
        return self._front

    def _of(self, results: Sequence[TrialResult]) -> ParetoFront:
        return ParetoFront.of(results, self._objectives, self._limits, self._baseline, self._scoring)


def _refitted(results: Sequence[TrialResult]) -> list[TrialResult]:
    """The refits, and the trials that they go on from."""
    parents = {result.refit_of for result in results if result.refit_of is not None}
    return [result for result in results if result.refit_of is not None or result.number in parents]


def unusable(metrics: dict[str, float], objectives: Sequence[Objective], limits: Sequence[Limit]) -> str | None:
    """Why these metrics cannot be compared with others: one that is needed is missing or not finite. None when they can."""
    for name in [objective.metric for objective in objectives] + [limit.metric for limit in limits]:
        if name not in metrics:
            return f"the trial measured no {name}"
        if not math.isfinite(metrics[name]):
            return f"{name} is {metrics[name]}"
    return None


def missed(metrics: dict[str, float], limits: Sequence[Limit], baseline: dict[str, float]) -> list[Limit]:
    """The limits that `metrics` do not meet."""
    return [limit for limit in limits if limit.excess(metrics, baseline) > 1e-12]


def relative_excess(metrics: dict[str, float], limits: Sequence[Limit], baseline: dict[str, float]) -> float:
    """The sum over the missed limits of the excess as a share of the bound: 0 when all are met."""
    total = 0.0
    for limit in missed(metrics, limits, baseline):
        total += limit.excess(metrics, baseline) / (abs(limit.bound(baseline)) or 1.0)
    return total


def loss_of(metrics: dict[str, float], objective: Objective, baseline: dict[str, float]) -> float:
    """The objective scaled to 0 (ideal) .. 1 (reference): value / baseline, or the share of `SCORE_RANGE` that was lost.

    A score better than the baseline's counts as the baseline's.
    """
    value, reference = metrics[objective.metric], baseline[objective.metric]
    if objective.is_cost:
        return value / reference if reference else value
    lost = reference - value if objective.goal == "max" else value - reference
    return max(0.0, lost / (SCORE_RANGE * abs(reference) or 1.0))


def hypervolume(points: Sequence[dict[str, float]], objectives: Sequence[Objective], baseline: dict[str, float]) -> float:
    """See `ParetoFront.hypervolume`."""
    losses = [[loss_of(point, objective, baseline) for objective in objectives] for point in points]
    inside = [row for row in losses if all(loss < 1 for loss in row)]
    if not inside:
        return 0.0
    return float(moocore.hypervolume(np.array(inside, dtype=float), ref=np.ones(len(objectives))))


def non_dominated(points: Sequence[dict[str, float]], objectives: Sequence[Objective]) -> list[dict[str, float]]:
    """Those of the metrics that no others dominate, of equal ones the first."""
    return [point for point, kept in zip(points, _is_non_dominated(points, objectives), strict=True) if kept]


def _non_dominated(results: list[TrialResult], objectives: Sequence[Objective]) -> list[TrialResult]:
    kept = _is_non_dominated([result.metrics for result in results], objectives)
    return [result for result, stays in zip(results, kept, strict=True) if stays]


def _is_non_dominated(points: Sequence[dict[str, float]], objectives: Sequence[Objective]) -> list[bool]:
    if not points:
        return []
    signs = np.array([1.0 if objective.goal == "min" else -1.0 for objective in objectives])
    table = np.array([[point[objective.metric] for objective in objectives] for point in points]) * signs
    kept: list[bool] = moocore.is_nondominated(table, keep_weakly=False).tolist()
    return kept


def _without_twins(
    results: Sequence[TrialResult], scoring: Scoring, within: Container[int]
) -> tuple[list[TrialResult], dict[int, Spread]]:
    """The results with one refit for all seeds of a trial, and without the trials that their refits have overtaken.

    What keeps to the limits (the numbers in `within`) is not overtaken by what does not: a file of the same shape may be
    timed at a little more.
    """
    kept = {result.number: result for result in results if result.refit_of is None}
    refits: dict[int, list[TrialResult]] = {}
    for result in results:
        if result.refit_of is not None:
            refits.setdefault(result.refit_of, []).append(result)
    chosen: list[TrialResult] = []
    spread: dict[int, Spread] = {}
    for parent, seeds in refits.items():
        scores = np.array([result.metrics[SCORE] for result in seeds])
        gaps = np.abs(scores - scores.mean())
        places = [place for place, seed in enumerate(seeds) if seed.number in within] or range(len(seeds))
        typical = seeds[min(places, key=lambda place: gaps[place])]
        chosen.append(typical)
        if len(seeds) > 1:
            deviation = float(scores.std(ddof=1))
            spread[typical.number] = Spread(seeds=len(seeds), mean=float(scores.mean()), deviation=deviation)
        before = kept.get(parent)
        overtakes = typical.number in within or parent not in within
        if overtakes and before is not None and scoring.gain(before.metrics[SCORE], float(scores.mean())) <= 0:
            del kept[parent]
    return sorted([*kept.values(), *chosen], key=lambda result: result.number), spread


def _doubtful(
    members: Sequence[TrialResult], objectives: Sequence[Objective], spread: dict[int, Spread], scoring: Scoring
) -> dict[int, int]:
    """Member -> another that only its score, and that within the noise, keeps from dominating it."""
    noise = _noise(spread)
    others = [objective for objective in objectives if objective.metric != SCORE]
    if not noise or not others or len(others) == len(objectives):
        return {}
    found: dict[int, int] = {}
    for member in members:
        better = [
            other.number
            for other in members
            if dominates(other.metrics, member.metrics, others)
            and scoring.gain(member.metrics[SCORE], other.metrics[SCORE]) <= noise
        ]
        if better:
            found[member.number] = better[0]
    return found


def _noise(spread: dict[int, Spread]) -> float:
    """The difference of two scores that seeds alone make in one case of twenty; 0 when no seeds were tried."""
    if not spread:
        return 0.0
    variance = sum(entry.deviation**2 for entry in spread.values()) / len(spread)
    return 1.96 * math.sqrt(2 * variance)


def _distances_to_ideal(
    members: Sequence[TrialResult], objectives: Sequence[Objective], baseline: dict[str, float]
) -> NDArray[np.float64]:
    """Of each of `members`, every objective scaled to the range that it has in them; one that has no range does not count."""
    losses = np.array([[_scale(member.metrics, objective, baseline) for objective in objectives] for member in members])
    low, high = losses.min(axis=0), losses.max(axis=0)
    scaled = (losses - low) / np.where(high > low, high - low, 1.0)
    distances: NDArray[np.float64] = np.sqrt((scaled**2).sum(axis=1))
    return distances


def _scale(metrics: dict[str, float], objective: Objective, baseline: dict[str, float]) -> float:
    loss = loss_of(metrics, objective, baseline)
    return math.log(max(loss, 1e-9)) if objective.is_cost else min(loss, 1.0)
