"""A network as numbers: what each count of channels and each form of a layer costs, in divergence, bytes and time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.layer import Group, Layer, Layers
from autocompress.option import What
from autocompress.policy import LayerPolicy, Policy, kept_channels
from autocompress.tables import CostTable, LayerCosts, Sensitivity
from autocompress.target import Menu

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_Measured = dict[tuple[What, str], dict[float, float | None]]

STAGES = 3
# What saves a smaller share of the time than that is taken to save as much: tables are not more exact.
_LEAST_SAVING = 0.02


@dataclass(frozen=True, eq=False)
class Cut:
    """A group: how many channels may be kept, all of them first, and the divergence of each count.

    `extra` are the bytes of each count outside of the network's parts: of norms and of parameters of its own.
    `layers` are the places of the layers that a count makes narrower or, none kept, leaves out, `stage` is the third of
    the network it is in.
    """

    name: str
    channels: int
    kept: Counts
    divergence: Floats
    extra: Floats
    layers: tuple[int, ...]
    stage: int


@dataclass(frozen=True, eq=False)
class Part:
    """A layer: the forms it may be stored and run in, by rows.

    A row is a form of the policy (`how`) and one way to store it, so that its bytes are linear: ``fixed + each * inputs *
    outputs + channel * outputs`` with so many channels; of the rows of one form the smallest counts. `mildest` marks the
    rows of the first form.
    `bits` and `zeros` are the divergences of its widths and of its zeros, `kernel` is 1 for integers, 0 for floats.
    `ms` is the time [kernel][place in input_counts][place in output_counts], `border` what of that of floats is the change of
    numbers before and after the layer. `branch_of` are the places of the cuts that leave the layer out where they keep none.
    """

    name: str
    how: tuple[LayerPolicy, ...]
    mildest: NDArray[np.bool_]
    bits: Floats
    zeros: Floats
    fixed: Floats
    each: Floats
    channel: Floats
    kernel: Counts
    inputs: int
    outputs: int
    reads: dict[int, int]
    writes: int | None
    input_counts: Counts
    output_counts: Counts
    ms: Floats
    border: float
    stage: int
    branch_of: tuple[int, ...]

    def sizes(self, inputs: Counts, outputs: Counts) -> Floats:
        """The bytes [row][place] with so many input and output channels, two arrays of one length."""
        found: Floats = self.fixed[:, None] + np.outer(self.each, inputs * outputs) + np.outer(self.channel, outputs)
        return found

    def times(self, inputs: Counts, outputs: Counts) -> Floats:
        """The milliseconds [row][place] with so many input and output channels, two arrays of one length."""
        places = np.searchsorted(self.input_counts, inputs), np.searchsorted(self.output_counts, outputs)
        found: Floats = self.ms[:, *places][self.kernel]
        return found

    def only(self, rows: NDArray[np.bool_]) -> "Part":
        """The same part with fewer rows."""
        arrays = {
            name: getattr(self, name)[rows] for name in ("mildest", "bits", "zeros", "fixed", "each", "channel", "kernel")
        }
        return replace(self, how=tuple(how for how, stays in zip(self.how, rows, strict=True) if stays), **arrays)


@dataclass(frozen=True, eq=False)
class Network:
    """All parts in the order they run, all cuts, and the bytes and the time of what is neither."""

    parts: tuple[Part, ...]
    cuts: tuple[Cut, ...]
    rest_bytes: float
    rest_ms: float


def network(layers: Layers, menu: Menu, sensitivity: Sensitivity, costs: CostTable) -> Network:
    """Raises `UnknownNameError` for tables of another network, `InputError` when a layer has no usable option."""
    measured: _Measured = {}
    for entry in sensitivity.entries:
        known = layers.group if entry.option.what == "channel_sparsity" else layers.layer
        known(entry.option.name)
        measured.setdefault((entry.option.what, entry.option.name), {})[entry.option.value] = entry.value
    place_of = {layer.name: place for place, layer in enumerate(layers)}
    cuts = tuple(_cut(group, measured.get(("channel_sparsity", group.name), {}), menu, place_of) for group in layers.groups)
    forms = [_forms(layer, menu, measured, bool(costs.layer(layer.name).int8_ms)) for layer in layers]
    borders = _borders(layers, forms, costs)
    parts = tuple(
        _part(layer, forms[place], costs, cuts, layers.groups, place * STAGES // len(layers), borders[place])
        for place, layer in enumerate(layers)
    )
    return Network(parts, cuts, costs.rest_bytes, costs.intercept_ms)


def summed_divergence(network: Network, policy: Policy) -> float:
    """What the options of a canonical policy add up to, interpolated between measured counts and shares of zeros.

    Scales for groups of inputs count as those for all. Infinite for a policy with an option that is not to be used.
    """
    total, gone = 0.0, set[str]()
    for place, cut in enumerate(network.cuts):
        kept = round(cut.channels * (1 - policy.channel_sparsity.get(cut.name, 0.0)))
        total += _of_count(cut, kept)
        gone |= {part.name for part in network.parts if kept == 0 and place in part.branch_of}
    for part in (part for part in network.parts if part.name not in gone):
        how = policy.layers.get(part.name, LayerPolicy())
        total += _of_form(part, how)
    return total


def _of_count(cut: Cut, kept: int) -> float:
    known: dict[int, float] = dict(sorted(zip(cut.kept.tolist(), cut.divergence.tolist(), strict=True)))
    without_branch = known.pop(0, math.inf)
    return float(np.interp(kept, list(known), list(known.values()), left=math.inf)) if kept else without_branch


def _of_form(part: Part, how: LayerPolicy) -> float:
    if how.weight_bits is None:
        rows, bits = list(range(len(part.how))), 0.0
    else:
        same = (how.weight_bits, how.activation_bits)
        rows = [row for row, other in enumerate(part.how) if (other.weight_bits, other.activation_bits) == same]
        bits = float(part.bits[rows[0]]) if rows else math.inf
    known = dict(sorted((part.how[row].weight_sparsity, float(part.zeros[row])) for row in rows))
    return bits + (float(np.interp(how.weight_sparsity, list(known), list(known.values()))) if known else 0.0)


@dataclass(frozen=True)
class _Form:
    how: LayerPolicy
    bits: float
    zeros: float


def _cut(group: Group, measured: dict[float, float | None], menu: Menu, place_of: dict[str, int]) -> Cut:
    usable = _growing({share: value for share, value in measured.items() if share < 1})
    # Without a branch less may be lost than with a few channels of it: what comes behind is fitted to that.
    usable += [(1.0, left_out)] if (left_out := measured.get(1.0)) is not None else []
    counts = [kept_channels(group.channels, share, group.multiple(menu.channel_multiple)) for share, _ in usable]
    touched = {place_of[name] for name in (*group.writers, *group.readers, *group.branch)}
    return Cut(
        name=group.name,
        channels=group.channels,
        kept=np.array([group.channels, *counts]),
        divergence=np.array([0.0, *(value for _, value in usable)]),
        extra=np.array([float(group.extra_bytes(kept)) for kept in (group.channels, *counts)]),
        layers=tuple(sorted(touched)),
        stage=min(touched) * STAGES // len(place_of),
    )


def _forms(layer: Layer, menu: Menu, measured: _Measured, kernels: bool) -> list[_Form]:
    """The mildest first: the widest integers, integer activations where there are kernels, no zeros."""
    bits: dict[int | None, float] = {
        int(width): value for width, value in _growing(measured.get(("weight_bits", layer.name), {}), widest_first=True)
    }
    if not bits:
        if ("weight_bits", layer.name) not in measured and set(menu.weight_bits) != {None}:
            raise InputError(f"the sensitivities know nothing of layer {layer.name!r}")
        if None not in menu.weight_bits:
            raise InputError(f"layer {layer.name!r}: no number of bits has a finite divergence; there is no policy for it")
        bits = {None: 0.0}
    zeros = [(0.0, 0.0), *_growing(measured.get(("weight_sparsity", layer.name), {}))]
    rounded = measured.get(("activation_bits", layer.name), {}).get(8.0)
    integers = kernels and rounded is not None and None not in bits
    beside = max(0.0, rounded - bits.get(8, 0.0)) if integers and rounded is not None else 0.0
    activations: list[Literal[8] | None] = [8] if integers or menu.activation_bits == (8,) else []
    activations += [None] if None in menu.activation_bits else []
    return [
        _Form(
            LayerPolicy(weight_bits=width, activation_bits=activation, weight_sparsity=share),
            of_bits + (beside if activation else 0.0),
            of_zeros,
        )
        for activation in activations
        for width, of_bits in bits.items()
        if activation is None or width is None or width <= menu.integer_weight_bits
        for share, of_zeros in zeros
    ]


def _growing(measured: dict[float, float | None], *, widest_first: bool = False) -> list[tuple[float, float]]:
    """The usable options, the mildest first. A divergence that falls on the way is noise: it is taken for the one before."""
    finite = [(option, value) for option, value in sorted(measured.items(), reverse=widest_first) if value is not None]
    values = accumulate((value for _, value in finite), max, initial=0.0)
    return [(option, value) for (option, _), value in zip(finite, list(values)[1:], strict=True)]


def _part(
    layer: Layer, forms: list[_Form], costs: CostTable, cuts: Sequence[Cut], groups: Sequence[Group], stage: int, border: float
) -> Part:
    table = costs.layer(layer.name)
    reads = {place: group.readers[layer.name] for place, group in enumerate(groups) if group.readers.get(layer.name)}
    writes = [place for place, group in enumerate(groups) if layer.name in group.writers]
    rows = [(form, *line) for form in forms for line in _lines(table, form.how)]
    outputs, inputs = layer.channels
    input_counts = _reachable(inputs, [(cuts[place], each) for place, each in reads.items()])
    output_counts = np.unique(cuts[writes[-1]].kept) if writes else np.array([outputs])
    grids = (table.float_ms, table.int8_ms or table.float_ms)
    times = [_filled(table.inputs, table.outputs, np.array(grid), input_counts, output_counts) for grid in grids]
    ms = costs.slope * np.array(times)
    ms[0] += border
    return Part(
        name=layer.name,
        how=tuple(form.how for form, *_ in rows),
        mildest=np.array([form is forms[0] for form, *_ in rows]),
        bits=np.array([form.bits for form, *_ in rows]),
        zeros=np.array([form.zeros for form, *_ in rows]),
        fixed=np.array([fixed for _, fixed, _, _ in rows]),
        each=np.array([each for _, _, each, _ in rows]) * table.weights / (table.inputs[-1] * table.outputs[-1]),
        channel=np.array([channel for *_, channel in rows]),
        kernel=np.array([form.how.activation_bits is not None for form, *_ in rows], dtype=np.int64),
        inputs=inputs,
        outputs=outputs,
        reads=reads,
        writes=writes[-1] if writes else None,
        input_counts=input_counts,
        output_counts=output_counts,
        ms=ms,
        border=border,
        stage=stage,
        branch_of=tuple(place for place, group in enumerate(groups) if layer.name in group.branch),
    )


def _lines(table: LayerCosts, how: LayerPolicy) -> list[tuple[float, float, float]]:
    """Of each way to store a form: bytes whatever the width, for each weight, and for each output channel."""
    storage = next((storage for storage in table.storage if storage.bits == how.weight_bits), None)
    if storage is None:
        raise InputError(f"the cost table knows layer {table.name!r} in no {how.weight_bits} bits")
    beside = table.floats if how.weight_bits is None else table.integer if how.activation_bits else table.codes
    return [(fixed + beside.layer, each, beside.channel) for fixed, each in storage.lines(how.weight_sparsity)]


def _borders(layers: Layers, forms: Sequence[Sequence[_Form]], costs: CostTable) -> list[float]:
    """What a layer that computes in floats takes beside its own time, at most: numbers change before it and after it.

    Nothing where its neighbours cannot compute in integers either.
    """
    at = [costs.layer(layer.name).border_ms for layer in layers]
    integer = [
        any(form.how.activation_bits for form in of_layer) and bool(costs.layer(layer.name).int8_ms)
        for layer, of_layer in zip(layers, forms, strict=True)
    ]
    pairs = range(len(at) - 1)
    before = [0.0] + [at[place] * integer[place] for place in pairs]
    after = [at[place] * integer[place + 1] for place in pairs] + [0.0]
    return [one + other for one, other in zip(before, after, strict=True)]


def _reachable(inputs: int, cuts: Sequence[tuple[Cut, int]]) -> Counts:
    """Every number of input channels that the groups a layer reads can leave."""
    found = np.array([inputs])
    for cut, each in cuts:
        found = np.unique(found[:, None] - each * (cut.channels - cut.kept[None, :]))
    return found


def _filled(inputs: Sequence[int], outputs: Sequence[int], grid: Floats, at_inputs: Counts, at_outputs: Counts) -> Floats:
    """The grid at other numbers of channels: bilinear, and the nearest value outside of it."""
    rows = np.array([np.interp(at_outputs, outputs, row) for row in grid])
    return np.array([np.interp(at_inputs, inputs, column) for column in rows.T]).T


def with_the_quicker_kernels(network: Network) -> Network:
    """The same network without the integers when it is quicker with floats throughout, else `without_needless_floats`."""
    mixed, floats = without_needless_floats(network), _in_floats(network)
    if floats is not None and _least_ms(floats) < (1 - _LEAST_SAVING) * _least_ms(mixed):
        return floats
    return mixed


def _in_floats(network: Network) -> Network | None:
    """With float activations only, and so without a change of numbers anywhere; None where a layer cannot have them."""
    parts = []
    for part in network.parts:
        if not (floats := part.kernel == 0).any():
            return None
        part = part.only(floats)
        part = replace(part, mildest=np.array([how == part.how[0] for how in part.how]), ms=part.ms - part.border)
        parts.append(part)
    return replace(network, parts=tuple(parts))


def _least_ms(network: Network) -> float:
    """The time of all layers with all their channels, each in its quickest form."""
    full = (part.times(np.array([part.inputs]), np.array([part.outputs])) for part in network.parts)
    return network.rest_ms + sum(float(times.min()) for times in full)


def without_needless_floats(network: Network) -> Network:
    """The same network, with float activations only where they are quicker, or rounding them is dear.

    Dear is what costs more divergence than saving as large a share of the time is worth, at the rate at which halving all
    widths gives divergence for size.
    """
    parts = network.parts
    rate = sum(_of_half_width(part) for part in parts) / math.log(2)
    full = [part.times(np.array([part.inputs]), np.array([part.outputs]))[:, 0] for part in parts]
    total = sum(float(times[part.kernel.argmax()]) for part, times in zip(parts, full, strict=True))
    kept = []
    for part, times in zip(parts, full, strict=True):
        share = float(times[part.kernel.argmin()] - times[part.kernel.argmax()]) / max(total, 1e-12)
        integer, saved = part.kernel == 1, max(_LEAST_SAVING, share)
        dear = integer.any() and (~integer).any() and part.bits[integer].min() - part.bits[~integer].min() > rate * saved
        kept.append(part if dear or share < 0 or not integer.any() else part.only(integer))
    return replace(network, parts=tuple(kept))


def _of_half_width(part: Part) -> float:
    """The divergence of weights of half the widest integers."""
    widths = {how.weight_bits: float(bits) for how, bits in zip(part.how, part.bits, strict=True) if how.weight_bits}
    if not widths:
        return 0.0
    half = min(widths, key=lambda width: abs(width - max(widths) / 2))
    return widths[half]
