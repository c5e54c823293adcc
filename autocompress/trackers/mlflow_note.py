"""The front in Markdown, for the description of an MLflow run."""

import html
from collections.abc import Mapping

from autocompress.front import ParetoFront, Spread
from autocompress.objective import SCORE, Scoring
from autocompress.result import TrialResult
from autocompress.words import times

_ROWS_IN_NOTE = 25


def note(front: ParetoFront, compute: Mapping[str, float], *, picture: str | None = None) -> str:
    """The description of the parent run, in Markdown: the front as a picture and as a table, best first objective first.

    `picture` is the address of the former, None when there is none. `compute` says how many worker-seconds were spent on
    what (`growth.compute_of`).
    """
    base, show, name = front.baseline, front.scoring.show, _plain(front.scoring.name)
    lines = [f"Uncompressed: {base['size_bytes'] / 1000:,.1f} kB, {name} {show(base[SCORE])} (validation)."]
    if front.baseline_test is not None:
        lines[0] = lines[0].removesuffix(".") + f", {show(front.baseline_test.accuracy)} (test)."
    shown = front.members or front.nearest
    chosen = front.recommended()
    if not front.members:
        limits = ", ".join(f"`{limit.text}`" for limit in front.limits) or "the limits"
        lines += ["", f"**No trial meets {limits}.** The nearest:" if shown else "**No trial was completed.**"]
    if chosen is not None:
        smaller = times(base["size_bytes"] / chosen.metrics["size_bytes"], "smaller", "larger")
        faster = times(base["latency_ms"] / chosen.metrics["latency_ms"], "faster", "slower")
        score = f"{name} {show(chosen.metrics[SCORE])}"
        lines += [
            "",
            f"**Recommended: trial {chosen.number}**, {smaller}, {faster}, {score}.",
        ]
    if picture is not None:
        lines += ["", f"![The front: size, {name} and, as colour, latency]({picture})"]
    if shown:
        lines += ["", f"| trial | size | latency | {name} | test | policy |", "| --- | --- | --- | --- | --- | --- |"]
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
    show, spread = front.scoring.show, front.spread.get(result.number)
    summary = _plain(result.summary)
    if result.refit_of is not None:
        summary += f" (trained further from trial {result.refit_of})"
    cells = [
        str(result.number),
        times(base["size_bytes"] / metrics["size_bytes"], "smaller", "larger"),
        ", ".join([times(base["latency_ms"] / metrics["latency_ms"], "faster", "slower"), *_further(metrics, front)]),
        _spread(spread, front.scoring) if spread else show(metrics[SCORE]),
        f"{show(score.accuracy)} ({show(score.low)} to {show(score.high)})" if score else "",
        summary,
    ]
    return "| " + " | ".join(f"{mark}{cell}{mark}" if cell else "" for cell in cells) + " |"


def _plain(words: str) -> str:
    """Text that is neither markup nor the end of a cell."""
    return html.escape(words, quote=False).replace("|", "\\|")


def _further(metrics: Mapping[str, float], front: ParetoFront) -> list[str]:
    """``2.2x on openvino-cpu``, of each further target."""
    return [f"{front.baseline[name] / metrics[name]:.1f}x on {place}" for name, place in front.further_latencies.items()]


def _spread(spread: Spread, scoring: Scoring) -> str:
    mean, deviation = scoring.show(spread.mean), scoring.show(spread.deviation)
    return f"{mean.removesuffix('%')} ± {deviation} ({spread.seeds} seeds)"


def _compute_line(compute: Mapping[str, float]) -> str:
    """``5,400 worker-seconds: 180 on preparation, 4,000 on trials, 1,220 on refits.``"""
    parts = ", ".join(f"{seconds:,.0f} on {what}" for what, seconds in compute.items() if seconds)
    return f"{sum(compute.values()):,.0f} worker-seconds{f': {parts}' if parts else ''}."
