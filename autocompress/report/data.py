"""What the report shows of the trials: one table of all complete ones, and words for their figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import pandas as pd

from autocompress.front import ParetoFront, Pick, Spread, TestScore, missed
from autocompress.layer import Layers
from autocompress.objective import SCORE, Limit, Scoring, base_of
from autocompress.result import Status, TrialResult
from autocompress.words import milliseconds, times

# Columns of the table that hold a metric under its own name, in this order.
_METRICS = ("size_bytes", "download_bytes", "latency_ms", SCORE, "macs", "params")
# How latency_ms was found: of no use to who reads a report.
_LEFT_OUT = ("latency_ratio", "latency_measured_ms")


@dataclass(frozen=True)
class Report:
    """What the page and the picture of the front are drawn from.

    `table` has a row for every complete trial: the front first, in its order, then the others by number. `trials` counts
    all of them, `counts` says in words how they ended. `notes` is what there is to say when no trial meets the limits,
    else empty.
    """

    title: str
    front: ParetoFront
    table: pd.DataFrame
    trials: int
    counts: str
    notes: tuple[str, ...]


def report_of(front: ParetoFront, results: Sequence[TrialResult], layers: Layers, title: str) -> Report:
    return Report(
        title=title,
        front=front,
        table=_table(front, results, layers),
        trials=len(results),
        counts=counts_words(results),
        notes=tuple(nearest_lines(front, results)),
    )


def counts_words(results: Sequence[TrialResult]) -> str:
    """``31 trials, 12 stopped early at a rung, 1 failed, 8 trained further``."""
    ended = Counter(result.status for result in results)
    refits = sum(result.refit_of is not None for result in results)
    parts = [
        (ended[Status.STOPPED], "stopped early at a rung"),
        (ended[Status.FAILED], "failed"),
        (refits, "trained further"),
    ]
    return ", ".join([_count(len(results), "trial"), *(f"{number} {what}" for number, what in parts if number)])


def nearest_lines(front: ParetoFront, results: Sequence[TrialResult] = ()) -> list[str]:
    """Why the front is empty: the nearest models, what they lack, and the limit that binds. Empty when it is not.

    What binds is judged on all complete trials of `results`, by default on the nearest.
    """
    if front.members:
        return []
    if not front.nearest:
        reasons = Counter(result.error for result in results if result.error).most_common(1)
        because = f" The most frequent reason ({reasons[0][1]} of {len(results)}): {reasons[0][0]}" if reasons else ""
        return [f"No trial was completed, so there is nothing to choose from.{because}"]
    complete = [result for result in results if result.status is Status.COMPLETE] or list(front.nearest)
    wanted = " and ".join(limit.text for limit in front.limits)
    lines = [f"None of {_count(len(complete), 'trial')} meets {wanted}. The nearest:"]
    lines += [_nearest_line(result, front) for result in front.nearest]
    return [*lines, _binding_line(complete, front)]


def policy_words(result: TrialResult, layers: Layers) -> str:
    """The policy in a few words."""
    return result.summary or result.policy.describe(layers)


def remarks(result: TrialResult, front: ParetoFront) -> str:
    """What is special about a trial, in words; empty for most."""
    found = [] if result.refit_of is None else [f"trained further from trial {result.refit_of}"]
    if result.number in front.doubtful:
        found.append(f"not clearly better than trial {front.doubtful[result.number]}")
    return ", ".join(found)


def times_smaller(metrics: dict[str, float], baseline: dict[str, float]) -> float:
    return baseline["size_bytes"] / metrics["size_bytes"]


def times_faster(metrics: dict[str, float], baseline: dict[str, float], metric: str = "latency_ms") -> float:
    return baseline[metric] / metrics[metric]


def show(metric: str, value: float, scoring: Scoring) -> str:
    """A figure with its unit: ``24.0 kB``, ``0.220 ms``, ``97.5%``, ``1.2 M``."""
    metric = base_of(metric)
    if metric.endswith("_bytes"):
        return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
    if metric.endswith("_ms"):
        return milliseconds(value)
    if metric == SCORE:
        return scoring.show(value)
    if metric in ("macs", "params"):
        return f"{value / 1e6:.3g} M" if value < 1e9 else f"{value / 1e6:,.0f} M"
    return f"{value:.4g}"


def show_test(score: TestScore, scoring: Scoring) -> str:
    """A test score with half the width of its interval: ``97.1 ± 0.8%``."""
    return _give_or_take(score.accuracy, (score.high - score.low) / 2, scoring)


def show_spread(spread: Spread, scoring: Scoring) -> str:
    """The mean score over the seeds with its standard deviation: ``97.6 ± 0.2%``."""
    return _give_or_take(spread.mean, spread.deviation, scoring)


def _give_or_take(value: float, error: float, scoring: Scoring) -> str:
    if scoring.share:
        return f"{scoring.show(value).removesuffix('%')} ± {scoring.show(error)}"
    return f"{value:.4g} ± {error:.2g}"


def _table(front: ParetoFront, results: Sequence[TrialResult], layers: Layers) -> pd.DataFrame:
    on_front = {member.number: place for place, member in enumerate(front.members)}
    complete = [result for result in results if result.status is Status.COMPLETE]
    complete.sort(key=lambda result: (on_front.get(result.number, len(on_front)), result.number))
    known = {name for result in complete for name in result.metrics if base_of(name) not in _LEFT_OUT}
    known |= {objective.metric for objective in front.objectives}
    own = sorted(known - set(_METRICS))
    picks = _picks(front)
    rows = [
        _row(result, front, own, layers) | {"on_front": result.number in on_front, "pick": picks.get(result.number, "")}
        for result in complete
    ]
    columns = [*_row_head(), *own, "refit_of", "remarks", "policy", "model"]
    return pd.DataFrame(rows, columns=columns).astype({"seeds": "Int64", "refit_of": "Int64"})


def _row_head() -> list[str]:
    return [
        *("number", "on_front", "pick", "size_bytes", "size_ratio", "download_bytes", "latency_ms", "speedup", SCORE),
        *("seeds", "accuracy_mean", "accuracy_deviation", "test_accuracy", "test_low", "test_high", "macs", "params"),
    ]


def _row(result: TrialResult, front: ParetoFront, own: Sequence[str], layers: Layers) -> dict[str, object]:
    test, spread = front.test.get(result.number), front.spread.get(result.number)
    row: dict[str, object] = {name: result.metrics.get(name) for name in (*_METRICS, *own)}
    row |= {
        "number": result.number,
        "size_ratio": round(times_smaller(result.metrics, front.baseline), 3),
        "speedup": round(times_faster(result.metrics, front.baseline), 3),
        "refit_of": result.refit_of,
        "remarks": remarks(result, front),
        "policy": policy_words(result, layers),
        "model": result.model,
    }
    if test is not None:
        row |= {"test_accuracy": test.accuracy, "test_low": test.low, "test_high": test.high}
    if spread is not None:
        row |= {"seeds": spread.seeds, "accuracy_mean": spread.mean, "accuracy_deviation": spread.deviation}
    return row


def _picks(front: ParetoFront) -> dict[int, str]:
    """Trial number -> the names by which it can be picked, the recommended one first."""
    chosen = [("recommended", front.recommended()), *((how, front.pick(how)) for how in get_args(Pick))]
    names: dict[int, list[str]] = {}
    for name, member in chosen:
        if member is not None:
            names.setdefault(member.number, []).append(name)
    return {number: ", ".join(listed) for number, listed in names.items()}


def _nearest_line(result: TrialResult, front: ParetoFront) -> str:
    base, metrics = front.baseline, result.metrics
    gaps = [
        f"misses {limit.text} by {_gap(limit, limit.excess(metrics, base), front.scoring)}"
        for limit in missed(metrics, front.limits, base)
    ]
    return (
        f"trial {result.number}: {times(times_smaller(metrics, base), 'smaller', 'larger')}, "
        f"{times(times_faster(metrics, base), 'faster', 'slower')}, "
        f"{front.scoring.name} {front.scoring.show(metrics[SCORE])}; {', '.join(gaps)}"
    )


def _binding_line(complete: Sequence[TrialResult], front: ParetoFront) -> str:
    counts = [
        (sum(limit in missed(result.metrics, [limit], front.baseline) for result in complete), limit.text)
        for limit in front.limits
    ]
    most = max(count for count, _ in counts)
    binding = " and ".join(text for count, text in counts if count == most)
    if most == len(complete):
        return f"What binds: {binding}, missed by every trial. Loosen it, or widen the search space."
    return (
        f"Each limit is met by some trial, but no trial meets them all. What binds most: {binding}, "
        f"missed by {most} of {_count(len(complete), 'trial')}."
    )


def _gap(limit: Limit, excess: float, scoring: Scoring) -> str:
    if limit.metric == SCORE and scoring.share:
        return f"{100 * excess:.1f} points"
    return show(limit.metric, excess, scoring)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
