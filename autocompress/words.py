"""Figures of trials in words, as they are shown while a search runs."""

import math
from datetime import timedelta


def times(ratio: float, better: str, worse: str, digits: int = 1) -> str:
    """``3.1x faster``, or ``2.0x slower`` for a `ratio` of 0.5."""
    return f"{ratio:.{digits}f}x {better}" if ratio >= 0.995 else f"{1 / ratio:.{digits}f}x {worse}"


def ratios(metrics: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """How much smaller and faster, as far as it is known: ``31.0x smaller``, ``3.40x faster``."""
    found = []
    if "size_bytes" in metrics:
        found.append(times(baseline["size_bytes"] / metrics["size_bytes"], "smaller", "larger"))
    if "latency_ms" in metrics:
        found.append(times(baseline["latency_ms"] / metrics["latency_ms"], "faster", "slower", 2))
    return found


def milliseconds(value: float) -> str:
    """``0.220 ms``, ``1,230 ms``."""
    return f"{f'{value:#.3g}'.rstrip('.')} ms" if value < 999.5 else f"{value:,.0f} ms"


def percent(share: float) -> str:
    """``98.3%`` for 0.9825: halves go up, as in browsers, so that a page and the terminal agree."""
    return f"{math.floor(1000 * share + 0.5) / 10:.1f}%"


def gains(score: str, metrics: dict[str, float], baseline: dict[str, float]) -> str:
    """``31.0x smaller, 3.40x faster, accuracy 0.9760`` of a complete trial; its `score` is in words already."""
    return ", ".join([*ratios(metrics, baseline), score])


def under_way(refit_of: int | None, step: int | None, score: str, metrics: dict[str, float], baseline: dict[str, float]) -> str:
    """What a trial does: ``compressing``, then what was known at its latest rung, after `step` steps."""
    start = "compressing" if refit_of is None else f"training trial {refit_of} further"
    if step is None:
        return start
    parts = [*ratios(metrics, baseline), f"{score} after {step} steps"]
    return ", ".join(parts if refit_of is None else [start, *parts])


def done(sampled: int, trials: int | None, refits: int, used: float, worker_seconds: float | None) -> str:
    """``12/40, 3 trained further, 300/900 worker-seconds``; what the budget does not count is left out."""
    parts = [f"{sampled}/{trials}" if trials is not None else str(sampled)]
    if refits:
        parts.append(f"{refits} trained further")
    if worker_seconds is not None:
        parts.append(f"{used:,.0f}/{worker_seconds:,.0f} worker-seconds")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """``1:02:05``."""
    return str(timedelta(seconds=round(seconds)))
