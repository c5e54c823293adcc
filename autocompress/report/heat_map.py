"""How far each option alone moves the outputs, as a map: a row a layer, a column an option."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from autocompress.layer import Layers
from autocompress.option import Option, What
from autocompress.tables import Divergence, Sensitivity

# More columns than that cannot be read: then each stands for an eighth of the channels.
_MOST_SHARES = 10
_EIGHTHS = 8

_HEADS: dict[What, str] = {
    "channel_sparsity": "channels removed",
    "weight_bits": "bits of the weights",
    "weight_sparsity": "zeros",
    "activation_bits": "activations",
}


@dataclass(frozen=True)
class Column:
    """Options that are compared: `what`, the `head` of all columns of that kind, and the `value` of this one in words."""

    what: What
    head: str
    value: str


@dataclass(frozen=True)
class Cell:
    """One option: its divergence, None where it was not finite, and what was done in words."""

    divergence: float | None
    words: str


@dataclass(frozen=True)
class HeatMap:
    """`cells[row][column]` is None where the row has no such option. Options of a group stand in the row of its name."""

    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell | None, ...], ...]

    @property
    def span(self) -> tuple[float, float] | None:
        """The least and the largest divergence above 0; None when there is none."""
        values = [cell.divergence for row in self.cells for cell in row if cell is not None and cell.divergence]
        positive = [value for value in values if 0 < value < math.inf]
        return (min(positive), max(positive)) if positive else None


def heat_map(sensitivity: Sensitivity, layers: Layers) -> HeatMap:
    """Rows in forward order; within a kind of option the columns go from the mildest to the strongest."""
    key = _column_key(sensitivity.entries)
    nearest: dict[tuple[str, What, float], Divergence] = {}
    for entry in sensitivity.entries:
        option = entry.option
        at = (option.name, option.what, key(option))
        rival = nearest.get(at)
        if rival is None or abs(option.value - at[2]) < abs(rival.option.value - at[2]):
            nearest[at] = entry
    named = [layer.name for layer in layers]
    named += sorted({name for name, _, _ in nearest} - set(named))
    rows = tuple(name for name in named if any(at[0] == name for at in nearest))
    places = sorted({at[1:] for at in nearest}, key=_mildest_first)
    cells = tuple(tuple(_cell(nearest.get((name, *place)), layers) for place in places) for name in rows)
    return HeatMap(rows, tuple(Column(what, _HEADS[what], _value(what, value)) for what, value in places), cells)


def option_words(option: Option, layers: Layers) -> str:
    """What an option does: ``16 of 64 channels removed``, ``weights in 3 bits``."""
    match option.what:
        case "channel_sparsity":
            group = next((group for group in layers.groups if group.name == option.name), None)
            if group is None:
                return f"{option.value:.0%} of the channels removed"
            others = len(group.writers) - 1
            shared = f", together with {others} other layer{'s' if others > 1 else ''}" if others else ""
            if option.value == 1:
                return f"the branch of {len(group.branch)} layer{'s' * (len(group.branch) > 1)} left out"
            return f"{round(option.value * group.channels)} of {group.channels} channels removed{shared}"
        case "weight_bits":
            return f"weights in {option.value:g} bits"
        case "weight_sparsity":
            return f"{option.value:.0%} of the weights zero"
        case "activation_bits":
            return "weights and activations in 8 bits"


def _column_key(entries: Iterable[Divergence]) -> Callable[[Option], float]:
    """The value of the column an option stands in: its own, or for many different channel shares the nearest eighth.

    Without any of its channels a branch is another network: that has a column of its own.
    """
    shares = {round(entry.option.value, 6) for entry in entries if entry.option.what == "channel_sparsity"}
    if len(shares) <= _MOST_SHARES:
        return lambda option: round(option.value, 6)
    return lambda option: (
        max(1, min(_EIGHTHS - 1, round(option.value * _EIGHTHS))) / _EIGHTHS
        if option.what == "channel_sparsity" and option.value < 1
        else option.value
    )


def _mildest_first(place: tuple[What, float]) -> tuple[int, float]:
    what, value = place
    return list(_HEADS).index(what), -value if what == "weight_bits" else value


def _value(what: What, value: float) -> str:
    return f"{value:.0%}" if what in ("channel_sparsity", "weight_sparsity") else f"{value:g}"


def _cell(entry: Divergence | None, layers: Layers) -> Cell | None:
    return None if entry is None else Cell(entry.value, option_words(entry.option, layers))
