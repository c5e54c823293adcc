"""The front as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.objective import SCORE
from autocompress.report.data import (
    policy_words,
    remarks,
    show,
    show_spread,
    show_test,
    times_faster,
    times_smaller,
)
from autocompress.result import TrialResult
from autocompress.words import times


def front_table(front: ParetoFront, layers: Layers) -> Table:
    """The uncompressed model, then the front (the nearest models when it is empty), best first objective first."""
    table = Table(caption="★ recommended" if front.members else None, caption_justify="left", pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True)
    further = front.further_latencies
    for place in further.values():
        table.add_column(f"latency\n{place}", justify="right", no_wrap=True)
    base, scoring = front.baseline, front.scoring
    for split in ("validation", "test"):
        table.add_column(Text(f"{scoring.name}\n({split})"), justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    tested = show_test(front.baseline_test, scoring) if front.baseline_test else ""
    figures = [show(metric, base[metric], scoring) for metric in ("size_bytes", "latency_ms", *further, SCORE)]
    table.add_row("", *figures, tested, "uncompressed", style="dim", end_section=True)
    chosen = front.recommended()
    for result in front.members or front.nearest:
        recommended = chosen is not None and result.number == chosen.number
        table.add_row(*_cells(result, front, layers, "★ " if recommended else ""), style="bold" if recommended else "")
    return table


def _cells(result: TrialResult, front: ParetoFront, layers: Layers, mark: str) -> list[Text]:
    base, test, spread = front.baseline, front.test.get(result.number), front.spread.get(result.number)
    seeds = f"{show_spread(spread, front.scoring)} ({spread.seeds} seeds)" if spread else ""
    cells = [
        f"{mark}{result.number}",
        times(times_smaller(result.metrics, base), "smaller", "larger"),
        *(
            times(times_faster(result.metrics, base, metric), "faster", "slower")
            for metric in ("latency_ms", *front.further_latencies)
        ),
        seeds or front.scoring.show(result.metrics[SCORE]),
        show_test(test, front.scoring) if test else "",
        "; ".join(filter(None, (policy_words(result, layers), remarks(result, front)))),
    ]
    return [Text(cell) for cell in cells]  # a policy's words are no markup
