"""The state of least summed divergence within so many bytes and so much time.

Prices on bytes and on time turn the budgets into one sum. It is made small cut by cut, each with the best form of every
layer that the cut touches (Lagrangian relaxation: Everett, 1963), and the prices are found by bisection. From the states on
both sides of the budgets single changes, and exchanges of two, go on to where nothing more can be gained.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.prior.network import Floats
from autocompress.prior.weighed import Changes, Prices, State, Weighed, Worth

# What has a budget keeps that share of the weight at least: it cannot be met by prices on the other alone.
_LEAST_WEIGHT = 0.05
_FIRST_PRICE = 0.01  # of the largest divergence
_FACTOR = 8.0
# At that many times the largest divergence nothing but bytes and time counts.
_DEAREST = 1e9
_BISECTIONS = 8
_TURNS = 3
_BALANCED = 0.02
_SWEEPS = 8
_STEPS = 300
# How many of the most promising exchanges are tried.
_EXCHANGES = 8
_GAIN = 1e-7
_FREE = Prices(0.0, 0.0)


@dataclass(frozen=True)
class Budgets:
    size: float = math.inf
    ms: float = math.inf

    def met_by(self, worth: Worth) -> bool:
        return worth.size <= self.size and worth.ms <= self.ms


@dataclass(frozen=True)
class _Sides:
    """The states next to the budgets, within and beyond, and the least prices at which they are met."""

    within: State
    beyond: State
    prices: Prices


def solve(network: Weighed, budgets: Budgets, weight: float | None = None) -> State | None:
    """The state of least divergence within the budgets, None when there is none.

    `weight` (0..1) is that of time against size; None: what has no budget does not count. Where size has a budget, time
    counts by its weight and as much more as its own budget demands, and the other way round.
    """
    by_size = math.isfinite(budgets.size)
    if not by_size and not math.isfinite(budgets.ms):
        return _improved(network, network.mildest, budgets, _FREE)
    weight = (0.0 if by_size else 1.0) if weight is None else weight
    beside = _FREE
    found: list[State] = []
    for turn, sides in enumerate(_turns(network, budgets, weight)):
        if turn == 0:
            prices = sides.prices
            beside = Prices(0.0, prices.ms * (weight > 0)) if by_size else Prices(prices.size * (weight < 1), 0.0)
        both = sides.within, _lowered(network, sides.beyond, budgets)
        found += [_improved(network, state, budgets, beside) for state in both if state is not None]
    if not found:
        state = least(network, budgets, size=by_size)
        return _improved(network, state, budgets, beside) if budgets.met_by(network.worth(state)) else None
    return min(found, key=lambda state: beside.of(network.worth(state)))


def _turns(network: Weighed, budgets: Budgets, weight: float) -> Iterator[_Sides]:
    """The sides at the given weight of time; where another budget is the tighter one, also at weights that suit both."""
    by_size = math.isfinite(budgets.size)
    low, high = (min(weight, 1 - _LEAST_WEIGHT), 1.0) if by_size else (0.0, max(weight, _LEAST_WEIGHT))
    first = at = low if by_size else high
    for _ in range(_TURNS):
        sides = _sides(network, budgets, at)
        time_is_tighter = by_size
        if sides is not None:
            yield sides
            worth = network.worth(sides.within)
            of_time, of_size = worth.ms / budgets.ms, worth.size / budgets.size
            time_is_tighter = of_time > of_size
            if abs(of_time - of_size) < _BALANCED or (at == first and time_is_tighter != by_size):
                return
        low, high = (at, high) if time_is_tighter else (low, at)
        at = (low + high) / 2


def least(network: Weighed, budgets: Budgets, *, size: bool) -> State:
    """The smallest state within the budgets (else the fastest); where there is none, the one that is least beyond them."""
    worth = network.worth(network.mildest)
    dear = _DEAREST * network.largest_divergence
    found = []
    for weight in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0):
        prices = Prices(dear * (1 - weight) / worth.size, dear * weight / worth.ms)
        found.append(_descended(network, network.mildest, prices))

    def key(state: State) -> tuple[float, float]:
        after = network.worth(state)
        return max(after.size / budgets.size, after.ms / budgets.ms, 1.0), after.size if size else after.ms

    return min(found, key=key)


def _sides(network: Weighed, budgets: Budgets, weight: float) -> _Sides | None:
    state = network.mildest
    worth = network.worth(state)
    if budgets.met_by(worth):
        return _Sides(state, state, _FREE)
    found: _Sides | None = None
    beyond = state
    low, high, price = 0.0, math.inf, _FIRST_PRICE * network.largest_divergence
    bisections = 0
    while bisections < _BISECTIONS and price < _DEAREST * network.largest_divergence:
        prices = Prices(price * (1 - weight) / min(worth.size, max(budgets.size, 1.0)), price * weight / worth.ms)
        state = _descended(network, state, prices)
        worth = network.worth(state)
        if budgets.met_by(worth):
            high, found = price, _Sides(state, beyond, prices)
        else:
            low, beyond = price, state
        if found is None:
            price *= _FACTOR
        else:
            bisections += 1
            price = math.sqrt(low * high) if low else high / _FACTOR
    return None if found is None else _Sides(found.within, beyond, found.prices)


def _descended(network: Weighed, state: State, prices: Prices) -> State:
    """A state in which no other count of any one cut is cheaper, whatever the forms of the layers it touches."""
    kept = list(state.kept)
    for _ in range(_SWEEPS):
        changed = False
        for cut in range(len(kept)):
            costs = network.of_counts(kept, prices, cut)
            best = int(costs.argmin())
            if costs[best] < costs[kept[cut]] * (1 - 1e-12):
                kept[cut], changed = best, True
        if not changed:
            break
    return State(tuple(kept), network.best_rows(kept, prices))


def _lowered(network: Weighed, state: State, budgets: Budgets) -> State | None:
    """The state brought within the budgets, each time by what costs the least divergence for what it saves."""
    for _ in range(_STEPS):
        worth = network.worth(state)
        if budgets.met_by(worth):
            return state
        changes = network.changes(state)
        saved = np.zeros(len(changes.size))
        if worth.size > budgets.size:
            saved -= np.maximum(changes.size, budgets.size - worth.size) / worth.size
        if worth.ms > budgets.ms:
            saved -= np.maximum(changes.ms, budgets.ms - worth.ms) / worth.ms
        useful = np.flatnonzero(saved > _GAIN)
        if not len(useful):
            break
        rates = np.maximum(changes.divergence[useful], 1e-12 * network.largest_divergence) / saved[useful]
        state = network.changed(state, changes, [int(useful[rates.argmin()])])
    return None


def _improved(network: Weighed, state: State, budgets: Budgets, beside: Prices) -> State:
    """Single changes and exchanges of two, the best first, as long as the budgets stay met and something is gained."""
    for _ in range(_STEPS):
        better = _better(network, state, budgets, beside)
        if better is None:
            break
        state = better
    return state


def _better(network: Weighed, state: State, budgets: Budgets, beside: Prices) -> State | None:
    worth = network.worth(state)
    changes = network.changes(state)
    cost = changes.divergence + beside.size * changes.size + beside.ms * changes.ms
    room = budgets.size - worth.size, budgets.ms - worth.ms
    enough = -_GAIN * max(worth.divergence, 1e-9 * network.largest_divergence)
    fits = (changes.size <= room[0]) & (changes.ms <= room[1]) & (cost < enough)
    if fits.any():
        return network.changed(state, changes, [int(np.where(fits, cost, math.inf).argmin())])
    for pair in _exchanges(changes, cost, room, enough):
        candidate = network.changed(state, changes, pair)
        after = network.worth(candidate)
        # Neighbours share bytes: what two changes bring together is not quite the sum.
        if budgets.met_by(after) and beside.of(after) < beside.of(worth) + enough:
            return candidate
    return None


def _exchanges(changes: Changes, cost: Floats, room: tuple[float, float], enough: float) -> Iterator[Sequence[int]]:
    """The most promising pairs of a change that gains, and does not fit, and one that makes room for it."""
    gaining = np.flatnonzero(cost < enough)
    saving = np.flatnonzero((changes.size < 0) | (changes.ms < 0))
    if not len(gaining) or not len(saving):
        return

    def both(values: Floats) -> Floats:
        total: Floats = values[gaining][:, None] + values[saving][None, :]
        return total

    fits = (both(changes.size) <= room[0]) & (both(changes.ms) <= room[1])
    fits &= changes.owner[gaining][:, None] != changes.owner[saving][None, :]
    total = np.where(fits, both(cost), math.inf).ravel()
    for pair in np.argpartition(total, min(_EXCHANGES, total.size) - 1)[:_EXCHANGES]:
        if total[pair] < enough:
            yield int(gaining[pair // len(saving)]), int(saving[pair % len(saving)])
