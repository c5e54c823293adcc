"""The front in Markdown, for the description of an MLflow run."""

from autocompress.front import ParetoFront
from autocompress.result import TrialResult

_ROWS_IN_NOTE = 25


def note(front: ParetoFront) -> str:
    """The description of the parent run, in Markdown: the front as a table, best first objective first."""
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
    if shown:
        lines += ["", "| trial | size | latency | accuracy | test | policy |", "| --- | --- | --- | --- | --- | --- |"]
        lines += [_row(result, front, "**" if result is chosen else "") for result in shown[:_ROWS_IN_NOTE]]
    if len(shown) > _ROWS_IN_NOTE:
        lines += ["", f"{len(shown) - _ROWS_IN_NOTE} more in `front.csv`."]
    if chosen is not None:
        lines += ["", "`front.html` among the artifacts shows every trial."]
    return "\n".join(lines)


def _row(result: TrialResult, front: ParetoFront, mark: str) -> str:
    base, metrics, score = front.baseline, result.metrics, front.test.get(result.number)
    cells = [
        str(result.number),
        f"{base['size_bytes'] / metrics['size_bytes']:.1f}x smaller",
        f"{base['latency_ms'] / metrics['latency_ms']:.1f}x faster",
        _score(metrics["accuracy"], base),
        f"{_score(score.accuracy, base)} ({_score(score.low, base)} to {_score(score.high, base)})" if score else "",
        result.summary.replace("|", "\\|"),
    ]
    return "| " + " | ".join(f"{mark}{cell}{mark}" if cell else "" for cell in cells) + " |"


def _score(value: float, baseline: dict[str, float]) -> str:
    """In percent, unless the task's score is no share."""
    return f"{value:.1%}" if 0 <= baseline["accuracy"] <= 1 else f"{value:.4g}"
