"""What each option does alone: how far it moves the outputs, how many bytes and how much time it saves."""

import math
from bisect import bisect_left
from functools import cached_property
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from autocompress.errors import InputError, unknown_name
from autocompress.layer import Layers
from autocompress.noun import Noun
from autocompress.option import Option
from autocompress.policy import LayerPolicy, Policy
from autocompress.result import Environment
from autocompress.target import Target

_SCALE_BYTES = 4


class Divergence(Noun):
    """How far one option alone moves the outputs; None where it was not finite: such an option is not to be used."""

    option: Option
    value: float | None


class Sensitivity(Noun):
    """The divergence of every option: `sensitivity.json`.

    `divergence` says in which unit (``KL of the outputs, nats``), `examples` on how many training inputs, `key` of which
    model, data, menu and comparison (a hash), `seconds` how many worker-seconds it took to measure.
    """

    version: Literal[1] = 1
    key: str
    divergence: str
    examples: int
    seconds: float
    entries: tuple[Divergence, ...]

    @cached_property
    def _by_option(self) -> dict[Option, float | None]:
        return {entry.option: entry.value for entry in self.entries}

    def of(self, option: Option) -> float | None:
        """The divergence of one option. Raises `UnknownNameError` for one that was not measured."""
        try:
            return self._by_option[option]
        except KeyError:
            known = {f"{known.what} of {known.name} at {known.value:g}" for known in self._by_option}
            raise unknown_name("option", f"{option.what} of {option.name} at {option.value:g}", known) from None


class Form(Noun):
    """A way to store a tensor: so many bytes whatever its size, for each number, and for each number that is not zero."""

    fixed: FiniteFloat = Field(ge=0)
    number: FiniteFloat = Field(ge=0)
    nonzero: FiniteFloat = Field(ge=0)


class Storage(Noun):
    """A layer's weights in so many bits, None for floats: their possible forms, of which the smallest counts.

    `zeros` is the share of weights that are zero when the policy asks for each of `sparsities`: few bits round some more
    to zero.
    """

    bits: int | None
    forms: tuple[Form, ...] = Field(min_length=1)
    sparsities: tuple[FiniteFloat, ...] = Field(min_length=1)
    zeros: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _as_many_zeros(self) -> Self:
        if len(self.zeros) != len(self.sparsities):
            raise ValueError(f"{len(self.zeros)} zeros for {len(self.sparsities)} sparsities")
        return self

    def lines(self, sparsity: float) -> tuple[tuple[float, float], ...]:
        """The bytes of each form when the policy makes that share of the weights zero: fixed, and for each weight."""
        left, right, part = _place((*self.sparsities, 1.0), sparsity)
        zeros = (*self.zeros, 1.0)
        nonzero = 1 - zeros[left] * (1 - part) - zeros[right] * part
        return tuple((form.fixed, form.number + form.nonzero * nonzero) for form in self.forms)


class Beside(Noun):
    """The bytes of a layer beside its weights: for the layer (nodes), and for each output channel (scale, bias)."""

    layer: FiniteFloat
    channel: FiniteFloat


class LayerCosts(Noun):
    """What one layer costs.

    The time of a file with this layer alone, in ms, at each number of input and output channels of the grid
    (`float_ms` and `int8_ms`, indexed [input][output]; `int8_ms` empty where the runtime has no integer kernel), and its
    bytes: of `weights` numbers at full width in each number of bits, and beside them when the weights are floats, are
    codes that become floats, and are codes in an integer kernel. `group_bytes` is what codes with a scale for each group of
    inputs take besides, but for the scales, `dynamic_bytes` what codes take in an integer kernel with dynamic ranges.
    `border_ms` is what it adds at full width when the layer after it runs in integers and it does not, or the other way
    round.
    """

    name: str
    inputs: tuple[int, ...] = Field(min_length=1)
    outputs: tuple[int, ...] = Field(min_length=1)
    float_ms: tuple[tuple[FiniteFloat, ...], ...]
    int8_ms: tuple[tuple[FiniteFloat, ...], ...] = ()
    border_ms: FiniteFloat = 0.0
    weights: int = Field(ge=1)
    storage: tuple[Storage, ...] = Field(min_length=1)
    floats: Beside
    codes: Beside
    integer: Beside
    group_bytes: FiniteFloat = 0.0
    dynamic_bytes: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _grids_fit(self) -> Self:
        shape = [len(self.outputs)] * len(self.inputs)
        for what, grid in (("float_ms", self.float_ms), ("int8_ms", self.int8_ms or self.float_ms)):
            if [len(row) for row in grid] != shape:
                raise ValueError(f"{what} must have {len(self.inputs)} rows of {len(self.outputs)} times")
        return self

    @cached_property
    def _lines(self) -> dict[tuple[int | None, str | None, float], tuple[tuple[tuple[float, float], ...], float]]:
        return {}  # filled as forms are asked for: a solver asks for few of them, many thousand times

    @cached_property
    def _full(self) -> float:
        return self.inputs[-1] * self.outputs[-1] / self.weights

    def is_integer(self, how: LayerPolicy) -> bool:
        """True when the layer runs in integers."""
        return how.activation_bits is not None and bool(self.int8_ms)

    def bytes(self, inputs: int, outputs: int, how: LayerPolicy) -> float:
        """Bytes with so many input and output channels, stored as `how` says. Raises `InputError` for unknown bits."""
        key = how.weight_bits, how.activation_range if how.activation_bits else None, how.weight_sparsity
        if key not in self._lines:
            self._lines[key] = self._linear(how)
        lines, channel = self._lines[key]
        kept = inputs * outputs / self._full
        return min([fixed + each * kept for fixed, each in lines]) + channel * outputs + self._grouped(inputs, outputs, how)

    def _grouped(self, inputs: int, outputs: int, how: LayerPolicy) -> float:
        """What scales for groups of inputs take beyond those for outputs."""
        if how.group_size is None:
            return 0.0
        return self.group_bytes + _SCALE_BYTES * outputs * (math.ceil(inputs / how.group_size) - 1)

    def _linear(self, how: LayerPolicy) -> tuple[tuple[tuple[float, float], ...], float]:
        storage = next((storage for storage in self.storage if storage.bits == how.weight_bits), None)
        if storage is None:
            raise InputError(f"the cost table knows layer {self.name!r} in no {how.weight_bits} bits")
        dynamic = how.activation_range == "dynamic"
        as_codes = dynamic or how.activation_bits is None
        beside = self.floats if how.weight_bits is None else self.codes if as_codes else self.integer
        layer = beside.layer + (self.dynamic_bytes if dynamic else 0)
        return tuple((fixed + layer, each) for fixed, each in storage.lines(how.weight_sparsity)), beside.channel

    def ms(self, inputs: int, outputs: int, how: LayerPolicy) -> float:
        """Milliseconds with so many input and output channels: bilinear between the points of the grid."""
        grid = self.int8_ms if self.is_integer(how) else self.float_ms
        low, high, share = _place(self.inputs, inputs)
        left, right, part = _place(self.outputs, outputs)
        lower = grid[low][left] * (1 - part) + grid[low][right] * part
        upper = grid[high][left] * (1 - part) + grid[high][right] * part
        return lower * (1 - share) + upper * share


class CostError(Noun):
    """How far predictions are from whole measured policies that had no part in the fit, as shares of the measured value.

    `rank_correlation` is Spearman's, 0 where it has no meaning.
    """

    policies: int
    mean: FiniteFloat
    largest: FiniteFloat
    rank_correlation: FiniteFloat


class CostTable(Noun):
    """Bytes and time of each layer at each option on one machine: `costs.json`. It may be used on another machine.

    A policy takes ``intercept_ms + slope * (sum over layers) + (borders between floats and integers)`` and ``rest_bytes +
    (sum over layers)``, layers of branches that are left out not among them; intercept, slope, borders and rest are fitted
    to whole measured policies. Where integer layers have a slope of their own, their `int8_ms` have been multiplied by its
    ratio to the other. `seconds` is how long it took to measure.
    """

    version: Literal[1] = 1
    target: Target
    environment: Environment
    layers: tuple[LayerCosts, ...]
    rest_bytes: FiniteFloat
    intercept_ms: FiniteFloat
    slope: FiniteFloat
    size_error: CostError
    latency_error: CostError
    seconds: float

    @cached_property
    def _by_name(self) -> dict[str, LayerCosts]:
        return {layer.name: layer for layer in self.layers}

    def layer(self, name: str) -> LayerCosts:
        """Raises `UnknownNameError`."""
        try:
            return self._by_name[name]
        except KeyError:
            raise unknown_name("layer in the cost table", name, self._by_name) from None

    def layer_bytes(self, name: str, inputs: int, outputs: int, how: LayerPolicy) -> float:
        """Bytes of a layer with so many input and output channels, stored as `how` says."""
        return self.layer(name).bytes(inputs, outputs, how)

    def layer_ms(self, name: str, inputs: int, outputs: int, how: LayerPolicy) -> float:
        """Milliseconds of a layer with so many input and output channels, before intercept and slope."""
        return self.layer(name).ms(inputs, outputs, how)

    def size_bytes(self, policy: Policy, layers: Layers) -> float:
        """The predicted bytes of the exported file."""
        policy = policy.canonical(layers, self.target.menu)
        widths = policy.widths(layers, self.target.menu)
        as_is = LayerPolicy()
        return self.rest_bytes + sum(
            self.layer_bytes(name, *width, policy.layers.get(name, as_is)) for name, width in widths.items()
        )

    def latency_ms(self, policy: Policy, layers: Layers) -> float:
        """The predicted milliseconds of the exported file."""
        widths = policy.widths(layers, self.target.menu)
        as_is = LayerPolicy()
        total = sum(self.layer_ms(name, *width, policy.layers.get(name, as_is)) for name, width in widths.items())
        return self.intercept_ms + self.slope * total + self._borders_ms(policy, widths)

    def _borders_ms(self, policy: Policy, widths: dict[str, tuple[int, int]]) -> float:
        """Of all layers whose successor, in the order they run, computes in other numbers."""
        as_is, total = LayerPolicy(), 0.0
        for before, after in pairwise(self.layer(name) for name in widths):
            differs = before.is_integer(policy.layers.get(before.name, as_is)) != after.is_integer(
                policy.layers.get(after.name, as_is)
            )
            if differs:
                total += before.border_ms * widths[before.name][1] / before.outputs[-1]
        return total


def _place(places: tuple[float, ...] | tuple[int, ...], at: float) -> tuple[int, int, float]:
    """The two known places around `at`, and how far it is from the first to the second; the nearest one outside of them."""
    right = bisect_left(places, at)
    if right == 0:
        return 0, 0, 0.0
    if right == len(places):
        return right - 1, right - 1, 0.0
    low, high = places[right - 1], places[right]
    return right - 1, right, (at - low) / (high - low)
