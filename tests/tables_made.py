"""Sensitivities and costs written down by a formula: they look like measured ones, and need no model."""

import math
from collections.abc import Callable

import numpy as np

from autocompress.layer import Group, Layer, Layers
from autocompress.option import SPARSITIES, Option, options
from autocompress.result import Environment
from autocompress.tables import Beside, CostError, CostTable, Divergence, Form, LayerCosts, Sensitivity, Storage
from autocompress.target import Menu, Target

_ERROR = CostError(policies=20, mean=0.0, largest=0.0, rank_correlation=1.0)


def made_sensitivity(layers: Layers, menu: Menu, *, seed: int = 0, noise: float = 0.0) -> Sensitivity:
    """Divergences that grow with the share of zeros or channels removed and with every bit that goes, by layer at random.

    With `noise` they have dents: a measured divergence does not always grow.
    """
    draw = np.random.default_rng(seed)
    names = [*(layer.name for layer in layers), *(group.name for group in layers.groups)]
    scale = {name: float(np.exp(draw.normal(0.0, 1.0))) for name in names}
    entries = []
    for option in options(layers, menu):
        dent = float(np.exp(draw.normal(0.0, noise)))
        entries.append(Divergence(option=option, value=scale[option.name] * _divergence(option) * dent))
    return Sensitivity(key="made", divergence="KL of the outputs, nats", examples=256, seconds=1.0, entries=tuple(entries))


def made_costs(layers: Layers, target: Target, *, border_ms: float = 0.0) -> CostTable:
    """Bytes as the packed forms take them; 100 multiply-accumulates a nanosecond in floats, 300 in integers."""
    return CostTable(
        target=target,
        environment=Environment(cpu="made", cores=2, python="3.11", versions={}),
        layers=tuple(_layer_costs(layer, target.menu, border_ms) for layer in layers),
        rest_bytes=2000.0,
        intercept_ms=0.02,
        slope=1.0,
        size_error=_ERROR,
        latency_error=_ERROR,
        seconds=1.0,
    )


def _divergence(option: Option) -> float:
    match option.what:
        case "channel_sparsity":
            return 0.3 * (math.exp(3 * option.value) - 1) / 10
        case "weight_sparsity":
            return 0.1 * float(option.value) ** 3
        case "weight_bits":
            return 2.0 * 0.25 ** int(option.value)
        case "activation_bits":
            return 2.0 * 0.25**8 + 1e-4


def _layer_costs(layer: Layer, menu: Menu, border_ms: float) -> LayerCosts:
    outputs, inputs = layer.weight_shape[:2]
    weights = math.prod(layer.weight_shape)
    grid_in, grid_out = _grid(inputs), _grid(outputs)
    float_ms = tuple(tuple(_ms(layer, i, o, 100) for o in grid_out) for i in grid_in)
    int8_ms = tuple(tuple(_ms(layer, i, o, 300) for o in grid_out) for i in grid_in)
    shares = (0.0, *SPARSITIES)
    return LayerCosts(
        name=layer.name,
        inputs=grid_in,
        outputs=grid_out,
        float_ms=float_ms,
        int8_ms=int8_ms if 8 in menu.activation_bits else (),
        border_ms=border_ms,
        weights=weights,
        storage=tuple(_storage(bits, shares) for bits in {*menu.weight_bits, None}),
        floats=Beside(layer=60.0, channel=4.0),
        codes=Beside(layer=120.0, channel=8.0),
        integer=Beside(layer=150.0, channel=8.0),
    )


def _storage(bits: int | None, shares: tuple[float, ...]) -> Storage:
    width = bits or 32
    dense = Form(fixed=60.0, number=width / 8, nonzero=0.0)
    sparse = Form(fixed=210.0, number=1 / 8, nonzero=width / 8)
    return Storage(bits=bits, forms=(dense, sparse), sparsities=shares, zeros=shares)


def _grid(channels: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, channels * quarter // 4) for quarter in range(1, 5)}))


def _ms(layer: Layer, inputs: int, outputs: int, macs_a_nanosecond: float) -> float:
    share = inputs * outputs / (layer.weight_shape[0] * layer.weight_shape[1])
    return 0.002 + layer.macs * share / (macs_a_nanosecond * 1e6)


def made_chain(depth: int) -> Layers:
    """A plain network: `depth` convolutions, each with a group, 16 channels wide at first and 64 in the end; a classifier."""
    widths = [16 * 2 ** (place * 3 // depth) for place in range(depth)]
    layers, groups = [], []
    for place, width in enumerate(widths):
        name, before = f"conv{place}", widths[place - 1] if place else 3
        macs = width * before * 9 * (32 * 16 // width) ** 2
        layers.append(
            Layer(
                name=name,
                kind="conv2d",
                weight_shape=(width, before, 3, 3),
                params=width * before * 9 + width,
                macs=macs,
                group=name,
            )
        )
        reader = f"conv{place + 1}" if place + 1 < depth else "head"
        groups.append(Group(name=name, channels=width, writers=(name,), readers={reader: 1}))
    head = Layer(name="head", kind="linear", weight_shape=(10, widths[-1]), params=10 * widths[-1] + 10, macs=10 * widths[-1])
    return Layers(layers=(*layers, head), groups=tuple(groups))


def changed(sensitivity: Sensitivity, by: Callable[[Option, float], float | None]) -> Sensitivity:
    """The same table with other divergences."""
    entries = [
        Divergence(option=entry.option, value=None if entry.value is None else by(entry.option, entry.value))
        for entry in sensitivity.entries
    ]
    return sensitivity.model_copy(update={"entries": tuple(entries)})
