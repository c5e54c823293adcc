"""A network whose divergences are weighed as somebody wants them: what its states cost, and what changes would bring."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.policy import Policy
from autocompress.prior.network import Counts, Floats, Network, Part


@dataclass(frozen=True)
class State:
    """The place in `Cut.kept` of each cut, and the row of each part."""

    kept: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Worth:
    """What a state costs: divergence, bytes and milliseconds."""

    divergence: float
    size: float
    ms: float


@dataclass(frozen=True)
class Prices:
    """The divergence that a byte and a millisecond are worth."""

    size: float
    ms: float

    def of(self, worth: Worth) -> float:
        return worth.divergence + self.size * worth.size + self.ms * worth.ms


@dataclass(frozen=True, eq=False)
class Changes:
    """Every other choice for one cut or one part alone: whose it is (cuts first), which, and what it changes."""

    owner: Counts
    choice: Counts
    divergence: Floats
    size: Floats
    ms: Floats


class Weighed:
    """`of_cuts` holds the divergence of each cut at each count, `of_parts` that of each part in each row.

    Rows that can never be of use are left out. In the `mildest` state nothing is cut and every part is in its first form.
    """

    def __init__(self, network: Network, of_cuts: Sequence[Floats], of_parts: Sequence[Floats]) -> None:
        useful = [_undominated(part, of_rows) for part, of_rows in zip(network.parts, of_parts, strict=True)]
        self.cuts = network.cuts
        self.parts = [part.only(rows) for part, rows in zip(network.parts, useful, strict=True)]
        self._of_cuts = of_cuts
        self._of_parts = [of_rows[rows] for of_rows, rows in zip(of_parts, useful, strict=True)]
        self._cuts_of = [
            tuple({*part.reads, *part.branch_of, *(() if part.writes is None else (part.writes,))}) for part in self.parts
        ]
        self._known: dict[tuple[int | None, ...], tuple[Floats, Floats, Floats]] = {}
        self._rest = network.rest_bytes, network.rest_ms
        self.largest_divergence = max(1e-12, *(float(of.max()) for of in (*of_cuts, *of_parts)))
        self.mildest = State((0,) * len(self.cuts), tuple(_smallest_of_first_form(part) for part in self.parts))

    def policy(self, state: State) -> Policy:
        shares = {
            cut.name: 1 - int(cut.kept[place]) / cut.channels for cut, place in zip(self.cuts, state.kept, strict=True) if place
        }
        layers = {part.name: part.how[row] for part, row in zip(self.parts, state.rows, strict=True)}
        return Policy(channel_sparsity=shares, layers=layers)

    def worth(self, state: State) -> Worth:
        size, ms = self._rest
        divergence = sum(float(of[place]) for of, place in zip(self._of_cuts, state.kept, strict=True))
        size += sum(float(cut.extra[place]) for cut, place in zip(self.cuts, state.kept, strict=True))
        for place, row in enumerate(state.rows):
            sizes, times, lost = self._costs(place, state.kept)
            divergence += float(lost[row, 0])
            size += float(sizes[row, 0])
            ms += float(times[row, 0])
        return Worth(divergence, size, ms)

    def changed(self, state: State, changes: Changes, which: Sequence[int]) -> State:
        """The state after some of its changes."""
        choices = [*state.kept, *state.rows]
        for change in which:
            choices[int(changes.owner[change])] = int(changes.choice[change])
        return State(tuple(choices[: len(state.kept)]), tuple(choices[len(state.kept) :]))

    def changes(self, state: State) -> Changes:
        found = [*self._changes_of_cuts(state), *self._changes_of_parts(state)]
        owners = [np.full(len(divergence), owner) for owner, (divergence, _, _) in enumerate(found)]
        choices = [np.arange(len(divergence)) for divergence, _, _ in found]
        divergence, size, ms = (np.concatenate(column) for column in zip(*found, strict=True))
        return Changes(np.concatenate(owners), np.concatenate(choices), divergence, size, ms)

    def of_counts(self, kept: Sequence[int], prices: Prices, cut: int) -> Floats:
        """What each count of a cut costs, with the best form of every layer that it touches."""
        total: Floats = self._of_cuts[cut] + prices.size * self.cuts[cut].extra
        for member in self.cuts[cut].layers:
            total += self._priced(member, kept, prices, cut).min(axis=0)
        return total

    def best_rows(self, kept: Sequence[int], prices: Prices) -> tuple[int, ...]:
        """The best row of every part at these counts."""
        return tuple(int(self._priced(place, kept, prices).argmin()) for place in range(len(self.parts)))

    def _priced(self, place: int, kept: Sequence[int], prices: Prices, cut: int | None = None) -> Floats:
        """What a part costs: [row][count of the cut]."""
        sizes, times, lost = self._costs(place, kept, cut)
        priced: Floats = prices.size * sizes + prices.ms * times + lost
        return priced

    def _costs(self, place: int, kept: Sequence[int], cut: int | None = None) -> tuple[Floats, Floats, Floats]:
        """The bytes, milliseconds and divergence of a part: [row][count of the cut], one count where there is none."""
        key = place, cut, *(kept[other] for other in self._cuts_of[place] if other != cut)
        if key not in self._known:
            part = self.parts[place]
            widths = (*self._widths(part, kept, cut), self._is_there(part, kept, cut))
            inputs, outputs, there = np.broadcast_arrays(*(np.atleast_1d(width) for width in widths))
            costs = part.sizes(inputs, outputs), part.times(inputs, outputs), self._of_parts[place][:, None]
            size, ms, lost = (cost * there for cost in costs)
            self._known[key] = size, ms, lost
        return self._known[key]

    def _widths(self, part: Part, kept: Sequence[int], cut: int | None) -> tuple[Counts, Counts]:
        """The input and output channels of a part; at every count of the one `cut`."""
        inputs: Counts = np.asarray(part.inputs)
        for place, each in part.reads.items():
            counts = self.cuts[place].kept
            inputs = inputs - each * (self.cuts[place].channels - (counts if place == cut else counts[kept[place]]))
        if part.writes is None:
            return inputs, np.asarray(part.outputs)
        counts = self.cuts[part.writes].kept
        return inputs, counts if part.writes == cut else counts[kept[part.writes]]

    def _is_there(self, part: Part, kept: Sequence[int], cut: int | None) -> NDArray[np.bool_]:
        """False where a part is left out, with all of its branch; at every count of the one `cut`."""
        there = np.asarray(True)
        for place in part.branch_of:
            counts = self.cuts[place].kept
            there = there & ((counts if place == cut else counts[kept[place]]) > 0)
        return there

    def _changes_of_cuts(self, state: State) -> Iterator[tuple[Floats, Floats, Floats]]:
        for place, cut in enumerate(self.cuts):
            divergence, size, ms = self._of_cuts[place].copy(), cut.extra.copy(), np.zeros(len(cut.kept))
            for member in cut.layers:
                sizes, times, lost = self._costs(member, state.kept, place)
                size += sizes[state.rows[member]]
                ms += times[state.rows[member]]
                divergence += lost[state.rows[member]]
            now = state.kept[place]
            yield divergence - divergence[now], size - size[now], ms - ms[now]

    def _changes_of_parts(self, state: State) -> Iterator[tuple[Floats, Floats, Floats]]:
        for place, now in enumerate(state.rows):
            size, ms, divergence = (cost[:, 0] for cost in self._costs(place, state.kept))
            yield divergence - divergence[now], size - size[now], ms - ms[now]


def _undominated(part: Part, divergence: Floats) -> NDArray[np.bool_]:
    """The rows that no other beats in everything, and those of the first form."""
    kernel = part.kernel.astype(float)
    # Where floats are the quicker ones, at some width, neither kernel beats the other.
    kernels = [-kernel, kernel] if (part.ms[0] < part.ms[1]).any() else [-kernel]
    columns = np.stack([divergence, part.fixed, part.each, part.channel, *kernels])
    no_worse = np.all(columns[:, None, :] <= columns[:, :, None], axis=0)  # [row][other]
    better = no_worse & np.any(columns[:, None, :] < columns[:, :, None], axis=0)
    useful: NDArray[np.bool_] = ~np.any(better, axis=1) | part.mildest
    return useful


def _smallest_of_first_form(part: Part) -> int:
    sizes = part.sizes(np.array([part.inputs]), np.array([part.outputs]))[:, 0]
    return int(np.where(part.mildest, sizes, math.inf).argmin())
