"""The front in Markdown, for the description of an MLflow run."""

import html
from collections.abc import Mapping

from autocompress.front import ParetoFront, Spread
from autocompress.result import TrialResult
from autocompress.words import percent

_ROWS_IN_NOTE = 25


def note(front: ParetoFront, compute: Mapping[str, float], *, picture: str | None = None) -> str:
    """The description of the parent run, in Markdown: the front as a picture and as a table, best first objective first.

    `picture` is the address of the former, None when there is none. `compute` says how many worker-seconds were spent on
    what (`growth.compute_of`).
    """
    base = front.baseline
    lines = [f"Uncompressed: {base['size_bytes'] / 1000:,.1f} kB, accuracy {_score(base['accuracy'], base)} (validation)."]
    if front.baseline_test is not None:
        lines[0] = lines[0].removesuffix(".") + f", {_score(front.baseline_test.accuracy, base)} (test)."
    shown = front.members or front.nearest
    chosen = front.recommended()
    if not front.members:
        limits = ", ".join(f"`{limit.text}`" for limit in front.limits) or "the limits"
        lines += ["", f"**No trial meets {limits}.** The nearest:" if shown else "**No trial was completed.**"]
    if chosen is not None:
        smaller, faster = base["size_bytes"] / chosen.metrics["size_bytes"], base["latency_ms"] / chosen.metrics["latency_ms"]
        accuracy = _score(chosen.metrics["accuracy"], base)
        lines += [
            "",
            f"**Recommended: trial {chosen.number}**, {smaller:.1f}x smaller, {faster:.1f}x faster, accuracy {accuracy}.",
        ]
    if picture is not None:
        lines += ["", f"![The front: size, accuracy and, as colour, latency]({picture})"]
    if shown:
        lines += ["", "| trial | size | latency | accuracy | test | policy |", "| --- | --- | --- | --- | --- | --- |"]
        lines += [_row(result, front, "**" if result is chosen else "") for result in shown[:_ROWS_IN_NOTE]]
    if len(shown) > _ROWS_IN_NOTE:
        lines += ["", f"{len(shown) - _ROWS_IN_NOTE} more in `front.csv`."]
    if any(result.number in front.spread for result in shown):
        lines += ["", "± is one standard deviation over the seeds."]
    lines += ["", _compute_line(compute)]
    if chosen is not None:
        lines += ["", "`front.html` among the artifacts shows every trial."]
    return "\n".join(lines)


def _row(result: TrialResult, front: ParetoFront, mark: str) -> str:
    base, metrics, score = front.baseline, result.metrics, front.test.get(result.number)
    spread = front.spread.get(result.number)
    summary = html.escape(result.summary, quote=False).replace("|", "\\|")
    if result.refit_of is not None:
        summary += f" (trained further from trial {result.refit_of})"
    cells = [
        str(result.number),
        f"{base['size_bytes'] / metrics['size_bytes']:.1f}x smaller",
        ", ".join([f"{base['latency_ms'] / metrics['latency_ms']:.1f}x faster", *_further(metrics, front)]),
        _spread(spread, base) if spread else _score(metrics["accuracy"], base),
        f"{_score(score.accuracy, base)} ({_score(score.low, base)} to {_score(score.high, base)})" if score else "",
        summary,
    ]
    return "| " + " | ".join(f"{mark}{cell}{mark}" if cell else "" for cell in cells) + " |"


def _further(metrics: Mapping[str, float], front: ParetoFront) -> list[str]:
    """``2.2x on openvino-cpu``, of each further target."""
    return [f"{front.baseline[name] / metrics[name]:.1f}x on {place}" for name, place in front.further_latencies.items()]


def _score(value: float, baseline: dict[str, float]) -> str:
    """In percent, unless the task's score is no share."""
    return percent(value) if 0 <= baseline["accuracy"] <= 1 else f"{value:.4g}"


def _spread(spread: Spread, baseline: dict[str, float]) -> str:
    mean, deviation = _score(spread.mean, baseline), _score(spread.deviation, baseline)
    return f"{mean.removesuffix('%')} ± {deviation} ({spread.seeds} seeds)"


def _compute_line(compute: Mapping[str, float]) -> str:
    """``5,400 worker-seconds: 180 on preparation, 4,000 on trials, 1,220 on refits.``"""
    parts = ", ".join(f"{seconds:,.0f} on {what}" for what, seconds in compute.items() if seconds)
    return f"{sum(compute.values()):,.0f} worker-seconds{f': {parts}' if parts else ''}."
