"""What a search has found, for machines: plain JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from autocompress.front import ParetoFront, Pick, TestScore
from autocompress.result import Status, TrialResult


def counts_of(results: Sequence[TrialResult]) -> dict[str, int]:
    """How many trials ended how, and how many of them trained another one further."""
    ends = Counter(result.status for result in results)
    refits = sum(result.refit_of is not None for result in results)
    return {"all": len(results), **{str(status): ends[status] for status in Status}, "trained_further": refits}


def front_summary(front: ParetoFront, results: Sequence[TrialResult]) -> dict[str, Any]:
    """The front with its picks, the uncompressed model it is judged by, and how trials ended.

    Sizes are in bytes, times in milliseconds, scores as the task gives them. `nearest` holds models where no trial meets the
    limits.
    """
    chosen = front.recommended()
    picks = {how: front.pick(how) for how in get_args(Pick)}
    return {
        "trials": counts_of(results),
        "hypervolume": front.hypervolume(),
        "objectives": {objective.metric: objective.goal for objective in front.objectives},
        "limits": [limit.text for limit in front.limits],
        "score": front.scoring.model_dump(),
        "uncompressed": {"metrics": front.baseline, "test": _test(front.baseline_test)},
        "recommended": None if chosen is None else chosen.number,
        "picks": {how: result.number for how, result in picks.items() if result is not None},
        "front": [model_summary(member, front) for member in front.members],
        "nearest": [model_summary(result, front) for result in front.nearest],
    }


def model_summary(result: TrialResult, front: ParetoFront) -> dict[str, Any]:
    """One model: what was measured, and how that compares with the uncompressed model."""
    spread = front.spread.get(result.number)
    return {
        **trial_summary(result, front.baseline),
        "seeds": None if spread is None else spread.model_dump(),
        "test": _test(front.test.get(result.number)),
    }


def trial_summary(result: TrialResult, baseline: dict[str, float]) -> dict[str, Any]:
    """One finished trial, in a line; `metrics` is empty unless it is complete."""
    times = {
        name: baseline[metric] / result.metrics[metric]
        for name, metric in (("times_smaller", "size_bytes"), ("times_faster", "latency_ms"))
        if result.metrics.get(metric)
    }
    return {
        "number": result.number,
        "status": str(result.status),
        "metrics": result.metrics,
        **times,
        "policy": result.summary,
        "refit_of": result.refit_of,
        "error": result.error,
        "worker_seconds": result.compute,
        "model": result.model,
    }


def _test(score: TestScore | None) -> dict[str, Any] | None:
    return None if score is None else score.model_dump()
