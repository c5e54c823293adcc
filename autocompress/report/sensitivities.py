"""Sensitivities as tables for the terminal."""

import math

from rich.table import Table
from rich.text import Text

from autocompress.layer import Layers
from autocompress.option import What
from autocompress.report.heat_map import Cell, Column, heat_map
from autocompress.tables import Sensitivity

# From what can be had for nothing to what ruins the network.
_COLOURS = ("green", "bright_green", "yellow", "dark_orange", "bold red")
# What lies further below the largest is as good as nothing.
_DECADES = 3.0

# Short, for there are many columns; `LEGEND` says what they mean.
_HEADS: dict[What, str] = {
    "weight_bits": "bits",
    "weight_sparsity": "zeros",
    "activation_bits": "w+a",
    "channel_sparsity": "removed",
}
LEGEND = "bits of the weights; share of the weights set to zero; bits of weights and activations; share of the channels removed"


def sensitivity_tables(sensitivity: Sensitivity, layers: Layers) -> list[Table]:
    """A table of the layers and one of the channel groups, in forward order; figures are thousandths of the unit."""
    drawn = heat_map(sensitivity, layers)
    largest = drawn.span[1] if drawn.span is not None else 0.0
    tables = []
    for of_groups in (False, True):
        picked = [place for place, column in enumerate(drawn.columns) if (column.what == "channel_sparsity") is of_groups]
        rows = [(name, [row[place] for place in picked]) for name, row in zip(drawn.rows, drawn.cells, strict=True)]
        rows = [(name, cells) for name, cells in rows if any(cell is not None for cell in cells)]
        if rows:
            columns = [drawn.columns[place] for place in picked]
            tables.append(_table("channel group" if of_groups else "layer", columns, rows, largest))
    return tables


def _table(kind: str, columns: list[Column], rows: list[tuple[str, list[Cell | None]]], largest: float) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    table.add_column(kind, no_wrap=True, overflow="ellipsis")
    kinds = [column.what for column in columns]
    for place, column in enumerate(columns):
        head = _HEADS[column.what] if place == kinds.index(column.what) else ""
        table.add_column(f"{head}\n{column.value}", justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(Text(name), *(_shown(cell, largest) for cell in cells))
    return table


def _shown(cell: Cell | None, largest: float) -> Text:
    if cell is None:
        return Text("")
    if cell.divergence is None:
        return Text("x", style=_COLOURS[-1])
    return Text(_thousandths(cell.divergence), style=_colour(cell.divergence, largest))


def _thousandths(value: float) -> str:
    """Two figures, or as many as there are before the point."""
    thousand = value * 1000
    if thousand < 0.01:
        return "0"
    return f"{thousand:.2g}" if thousand < 10 else f"{thousand:.0f}"


def _colour(value: float, largest: float) -> str:
    below = math.log10(largest / value) if 0 < value < largest else (0.0 if value > 0 else math.inf)
    place = (1 - below / _DECADES) * len(_COLOURS)
    return _COLOURS[max(0, min(len(_COLOURS) - 1, math.floor(place)))] if math.isfinite(place) else _COLOURS[0]
