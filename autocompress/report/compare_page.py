"""A comparison as an interactive page in one file, and as a table in Markdown."""

from typing import Any

from autocompress.front import ParetoFront
from autocompress.objective import SCORE
from autocompress.report.axes import axes_of, finite
from autocompress.report.comparison import Comparison, Contender
from autocompress.report.data import show, show_test
from autocompress.report.decision import export_folder, export_prefix
from autocompress.report.markdown import plain_text
from autocompress.report.page import assembled
from autocompress.result import TrialResult

_STYLES = ("base", "front", "compare")
_SCRIPTS = ("theme", "words", "chart", "zoom", "pointing", "compare")


def comparison_page(comparison: Comparison) -> str:
    """HTML that asks nothing of any network. Names and policies go in as data, so that none can become markup."""
    title = f"{len(comparison.contenders)} runs compared"
    return assembled("compare.html", title=title, styles=_STYLES, scripts=_SCRIPTS, data=_data(comparison, title))


def comparison_markdown(comparison: Comparison) -> str:
    """The verdict, what cannot be compared, what each run recommends, and in what they differ."""
    names = [plain_text(one.name) for one in comparison.contenders]
    lines = [f"# {len(names)} runs compared", "", plain_text(verdict(comparison))]
    lines += ["", *(f"- **{plain_text(warning)}**" for warning in comparison.warnings)] if comparison.warnings else []
    score = plain_text(score_name(comparison))
    heads = ("run", "hypervolume", "size", "latency", f"{score} (validation)", f"{score} (test)", "recommended", "export")
    lines += ["", _row(*heads), _row("---", *["---:"] * 5, "---", "---")]
    for one, name, volume in zip(comparison.contenders, names, comparison.volumes, strict=True):
        picked, pick = one.picked, one.pick
        volume_words = "-" if volume is None else f"{volume:.3f}"
        if picked is None or pick is None:
            lines.append(_row(name, volume_words, *["-"] * 4, "no trial was completed", ""))
            continue
        scoring, test = one.front.scoring, one.front.test.get(picked.number)
        figures = (show(metric, picked.metrics[metric], scoring) for metric in ("size_bytes", "latency_ms", SCORE))
        tested = show_test(test, scoring) if test else "not measured"
        about = f"{pick.gains} (trial {pick.number}, {pick.role})"
        lines.append(_row(name, volume_words, *figures, tested, about, f"`{pick.command}`"))
    lines += ["", f"Hypervolume by {plain_text(comparison.reference)}."]
    if comparison.differences:
        lines += ["", "## In what they differ", "", _row("", *names), _row(*["---"] * (1 + len(names)))]
        lines += [_row(one.matter, *map(plain_text, one.values)) for one in comparison.differences]
    return "\n".join(lines) + "\n"


def verdict(comparison: Comparison) -> str:
    """Which front is worth most, in a sentence; where the runs cannot be compared, that."""
    if comparison.warnings:
        return "These runs cannot simply be compared."
    ranked = sorted(
        (
            (volume, one.name)
            for volume, one in zip(comparison.volumes, comparison.contenders, strict=True)
            if volume is not None
        ),
        reverse=True,
    )
    (most, best), (next_most, second) = ranked[0], ranked[1]
    if most == next_most:
        return f"{best} and {second} come to the same hypervolume, {most:.3f}."
    return f"{best} comes to the largest hypervolume, {most:.3f}; next is {second} with {next_most:.3f}."


def score_name(comparison: Comparison) -> str:
    """What the score of all the runs is called."""
    names = {one.front.scoring.name for one in comparison.contenders}
    return names.pop() if len(names) == 1 else "score"


def _data(comparison: Comparison, title: str) -> dict[str, Any]:
    fronts = [one.front for one in comparison.contenders]
    axes = axes_of(fronts[0])
    shared = {name: axis for name, axis in axes.items() if all(name in front.baseline for front in fronts)}
    return {
        "title": title,
        "verdict": verdict(comparison),
        "warnings": list(comparison.warnings),
        "comparable": not comparison.warnings,
        "ratios": bool(comparison.warnings),
        "reference": f"Hypervolume by {comparison.reference}.",
        "axes": shared,
        "percent": all(front.scoring.share for front in fronts),
        "score": {"name": score_name(comparison)},
        "runs": [
            _run(one, volume, list(shared)) for one, volume in zip(comparison.contenders, comparison.volumes, strict=True)
        ],
        "differences": [
            {"matter": one.matter, "values": list(one.values), "grave": one.consequence is not None}
            for one in comparison.differences
        ],
    }


def _run(one: Contender, volume: float | None, metrics: list[str]) -> dict[str, Any]:
    front, pick, picked = one.front, one.pick, one.picked
    return {
        "name": one.name,
        "volume": finite(volume),
        "members": len(front.members),
        "trials": len(one.results),
        "seconds": one.worker_seconds,
        "baseline": {name: finite(front.baseline.get(name)) for name in metrics},
        "points": [_point(result, front, metrics) for result in front.members or front.nearest],
        "export": export_prefix(one.folder),
        "into": export_folder(one.folder),
        "pick": None
        if pick is None or picked is None
        else {
            "number": pick.number,
            "role": pick.role,
            "gains": pick.gains,
            "score": pick.score,
            "command": pick.command,
            "policy": picked.summary,
            "values": {name: finite(picked.metrics.get(name)) for name in metrics},
        },
    }


def _point(result: TrialResult, front: ParetoFront, metrics: list[str]) -> dict[str, Any]:
    test = front.test.get(result.number)
    return {
        "number": result.number,
        "values": {name: finite(result.metrics.get(name)) for name in metrics},
        "policy": result.summary,
        "test": show_test(test, front.scoring) if test else "",
    }


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
