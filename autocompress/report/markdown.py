"""The front in Markdown, for a pull request or a model card."""

import html
from collections.abc import Sequence

from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.objective import SCORE
from autocompress.report.data import Report, policy_words, remarks, show, show_spread, show_test
from autocompress.report.decision import Decision, gains_words
from autocompress.report.fine_print import Item
from autocompress.result import TrialResult


def front_markdown(report: Report, decision: Decision, fine_print: Sequence[Item], layers: Layers) -> str:
    """The decision in a sentence, the front (or the nearest models) as a table, the commands, and how all was measured."""
    front = report.front
    lines = [f"# {plain_text(report.title)}", "", *_decided(report, decision)]
    shown = front.members or front.nearest
    if shown:
        lines += ["", *_table(front, shown, decision, layers)]
    choices = [choice for choice in (decision.recommended, *decision.alternatives) if choice is not None]
    if choices:
        lines += ["", "```sh", *(f"{choice.command}  # {choice.role}: {choice.sentence}" for choice in choices), "```"]
    lines += ["", "## How it was measured", ""]
    lines += [f"- **{item.name}**: {plain_text(' '.join(item.words))}" for item in fine_print if item.words]
    return "\n".join(lines) + "\n"


def _decided(report: Report, decision: Decision) -> list[str]:
    chosen = decision.recommended
    if chosen is None:
        return [plain_text(note) + "\n" for note in report.notes] or ["No trial was completed."]
    return [
        f"**{chosen.sentence}** (trial {chosen.number}, recommended; {report.counts}, {len(report.front.members)} on the front)"
    ]


def _table(front: ParetoFront, shown: Sequence[TrialResult], decision: Decision, layers: Layers) -> list[str]:
    roles: dict[int, list[str]] = {}
    for choice in (decision.recommended, *decision.alternatives):
        if choice is not None and front.members:
            roles.setdefault(choice.number, []).append(choice.role)
    base, before, scoring = front.baseline, front.baseline_test, front.scoring
    name = plain_text(scoring.name)
    rows = [
        ("trial", "size", "latency", f"{name} (validation)", f"{name} (test)", "against uncompressed", "policy"),
        ("---:", "---:", "---:", "---:", "---:", "---", "---"),
        (
            *("", *(show(metric, base[metric], scoring) for metric in ("size_bytes", "latency_ms", SCORE))),
            *(show_test(before, scoring) if before else "not measured", "", "uncompressed"),
        ),
        *(_row(result, front, layers, roles.get(result.number, [])) for result in shown),
    ]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _row(result: TrialResult, front: ParetoFront, layers: Layers, roles: Sequence[str]) -> tuple[str, ...]:
    scoring, test, spread = front.scoring, front.test.get(result.number), front.spread.get(result.number)
    words = "; ".join(filter(None, (policy_words(result, layers), remarks(result, front))))
    called = f" ({', '.join(roles)})" if roles else ""
    return (
        f"{result.number}{called}",
        *(show(metric, result.metrics[metric], scoring) for metric in ("size_bytes", "latency_ms")),
        show_spread(spread, scoring) if spread else scoring.show(result.metrics[SCORE]),
        show_test(test, scoring) if test else "not measured",
        gains_words(result, front),
        plain_text(words),
    )


def plain_text(words: str) -> str:
    """A name is text: neither markup nor the end of a cell."""
    plain = html.escape(words, quote=False).replace("\n", " ")
    for mark in "\\`*_[]|":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
