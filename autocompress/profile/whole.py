"""Whole policies, spread over what a search may ask for, and what their files really weigh and take."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from autocompress import nested
from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.errors import InputError
from autocompress.lane import Lane
from autocompress.layer import Layers
from autocompress.measure import measure_latency, size_bytes
from autocompress.policy import Finetune, LayerPolicy, Policy
from autocompress.runtimes import runtime_of
from autocompress.target import Menu
from autocompress.task import Task

# Weights do not matter here: a few inputs set the ranges of activations.
_CALIBRATION = 64
_EXAMPLES = 8
_MOST_CUT = 0.75
_MOST_ZEROS = 0.85
_MOST_LEFT_OUT = 0.6

# Integers throughout; integers but for the first layer; float activations with rounded, and with float weights.
_Kind = Literal["integer", "float first", "codes", "float"]
# Two of each among the first eight, so that one left out can be predicted from the other.
_KINDS: tuple[_Kind, ...] = (
    *("integer", "codes", "integer", "float first"),
    *("integer", "codes", "integer", "float first"),
    *("integer", "float"),
)


@dataclass(frozen=True)
class Point:
    """A policy and the figures of its file; the time as trials have it, by its ratio to that of the uncompressed file."""

    policy: Policy
    size_bytes: float
    latency_ms: float


def spread_policies(layers: Layers, menu: Menu, count: int, *, seed: int) -> list[Policy]:
    """So many different policies, from hardly to heavily compressed, of all kinds that the menu has, without fine-tuning."""
    draw = np.random.default_rng(seed)
    kinds = [kind for kind in _KINDS if _on_menu(kind, menu)]
    # Each quantity takes all its values in turn, but independently of the others.
    cuts, widths, zeros = ((draw.permutation(count) + 0.5) / count for _ in range(3))
    return [
        _policy(layers, menu, kinds[at % len(kinds)], float(cuts[at]), float(widths[at]), float(zeros[at]), draw)
        for at in range(count)
    ]


def measured(policies: list[Policy], task: Task, baseline: Baseline, data: Data, lane: Lane) -> Iterator[Point]:
    """The uncompressed model, and each policy that can be carried out."""
    yield Point(Policy(), baseline.metrics["size_bytes"], baseline.metrics["latency_ms"])
    target, model = baseline.target.alone, baseline.model(task)
    inputs = nested.each(torch.tensor, nested.take(data["train"][0], slice(_CALIBRATION)))
    for policy in policies:
        try:
            with lane.shared():
                file = runtime_of(target).export(
                    compress(model, policy, inputs, groups=baseline.layers.groups), nested.take(inputs, slice(_EXAMPLES))
                )
            latency = measure_latency(file, baseline.file, target, lane=lane)
        except InputError:
            raise
        except Exception:  # noqa: BLE001  # the search will meet it as well, and record it
            continue
        yield Point(policy, size_bytes(file), latency.ratio * baseline.metrics["latency_ms"])


def _on_menu(kind: _Kind, menu: Menu) -> bool:
    widths = [bits for bits in menu.weight_bits if bits is not None]
    match kind:
        case "integer":
            return 8 in menu.activation_bits and bool(widths)
        case "float first":
            return {8, None} <= set(menu.activation_bits) and bool(widths)
        case "codes":
            return None in menu.activation_bits and bool(widths)
        case "float":
            return None in menu.activation_bits and None in menu.weight_bits


def _policy(
    layers: Layers, menu: Menu, kind: _Kind, cut: float, width: float, zeros: float, draw: np.random.Generator
) -> Policy:
    shares = {group.name: float(np.clip(_MOST_CUT * cut + draw.uniform(-0.2, 0.2), 0, 0.9)) for group in layers.groups}
    shares |= {group.name: 1.0 for group in layers.groups if group.branch and draw.uniform() < _MOST_LEFT_OUT * cut}
    widths = sorted(bits for bits in menu.weight_bits if bits is not None)
    # Half of the policies have no zeros of their own.
    sparsity = max(0.0, 2 * zeros - 1) * _MOST_ZEROS if menu.weight_sparsity else 0.0
    chosen: dict[str, LayerPolicy] = {}
    for place, layer in enumerate(layers):
        near = int(np.clip(round(width * (len(widths) - 1)) + draw.integers(-1, 2), 0, len(widths) - 1)) if widths else 0
        integer = kind == "integer" or (kind == "float first" and place > 0)
        chosen[layer.name] = LayerPolicy(
            weight_bits=None if kind == "float" else widths[near],
            activation_bits=8 if integer else None,
            weight_sparsity=float(np.clip(sparsity + draw.uniform(-0.1, 0.1), 0, 0.9)) if sparsity else 0.0,
        )
    return Policy(channel_sparsity=shares, layers=chosen, repair=False, finetune=Finetune(steps=0)).canonical(layers, menu)
