"""The layers of a network as they are applied: to what, how often, and at which numbers of channels they are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.graph import norm_after, trace
from autocompress.layer import Layer, Layers
from autocompress.nested import Nested
from autocompress.option import channel_shares
from autocompress.runtimes.single import LayerShape
from autocompress.student import only_input
from autocompress.target import Target

# A grid has so many points an axis at most: latency is a staircase of steps of eight channels, and nearly straight beyond.
_POINTS = 5


@dataclass(frozen=True)
class Use:
    """How a network applies one layer: one shape for each call, the numbers it gives for one example, and its grid.

    There are no `shapes` of a layer whose kind is not made as a file of its own.
    """

    layer: Layer
    shapes: tuple[LayerShape, ...]
    bias: bool
    numbers: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    has_integer_kernel: bool


def uses(model: nn.Module, example: Nested, layers: Layers, target: Target) -> tuple[Use, ...]:
    """Every layer as `model` applies it to the batch `example` (n, ...), for the batch size of the target."""
    shapes: dict[str, list[LayerShape]] = {layer.name: [] for layer in layers}
    numbers, calls = dict.fromkeys(shapes, 0), dict.fromkeys(shapes, 0)
    with_bias = _with_bias(model, example)
    examples = nested.count(example)

    def note(name: str, module: nn.Module, given: Tensor, output: Tensor) -> None:
        calls[name] += 1
        shape = _shape(module, given, bias=name in with_bias, batch=target.batch_size)
        shapes[name] += [] if shape is None else [shape]
        numbers[name] += output.numel() // examples

    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, given, named, output, name=name: note(name, module, only_input(given, named), output),
            with_kwargs=True,
        )
        for name in shapes
    ]
    try:
        with torch.no_grad():
            nested.call(model.eval(), example)
    finally:
        for hook in hooks:
            hook.remove()
    multiple = target.menu.channel_multiple
    return tuple(
        Use(
            layer,
            tuple(shapes[layer.name]),
            layer.name in with_bias,
            numbers[layer.name],
            *_grid(layer, layers, multiple, next(iter(shapes[layer.name]), None)),
            # A layer called twice has no single input scale; other padding stands between rounding and kernel.
            has_integer_kernel=calls[layer.name] == 1
            and layer.integer
            and layer.kind in target.menu.integer_kinds
            and getattr(model.get_submodule(layer.name), "padding_mode", "zeros") == "zeros",
        )
        for layer in layers
    )


def _shape(module: nn.Module, given: Tensor, *, bias: bool, batch: int) -> LayerShape | None:
    if isinstance(module, nn.Linear):
        rows = given.numel() // len(given) // module.in_features
        return LayerShape("linear", module.in_features, module.out_features, size=(rows,), bias=bias, batch=batch)
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return None
    # A convolution in one dimension is one in two, of height 1.
    flat = isinstance(module, nn.Conv1d)
    left, right, top, bottom = (*module._reversed_padding_repeated_twice, *([0, 0] if flat else []))
    kernel, stride, dilation = (
        (1, *sizes) if flat else sizes for sizes in (module.kernel_size, module.stride, module.dilation)
    )
    settings: dict[str, Any] = {"kernel": kernel, "stride": stride, "dilation": dilation}
    return LayerShape(
        "conv2d",
        module.in_channels,
        module.out_channels,
        size=(1, *given.shape[2:]) if flat else tuple(given.shape[2:]),
        padding=(top, left, bottom, right),
        groups=module.groups,
        bias=bias,
        batch=batch,
        **settings,
    )


def _with_bias(model: nn.Module, example: Nested) -> set[str]:
    """The layers that have a bias in the exported file: their own, or that of the batch norm folded into them."""
    found = {name for name, module in model.named_modules() if getattr(module, "bias", None) is not None}
    graph = trace(model, example)
    if graph is not None:
        found |= {str(node.target) for node in graph.graph.nodes if node.op == "call_module" and norm_after(node, graph)}
    return found


def _grid(layer: Layer, layers: Layers, multiple: int, shape: LayerShape | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    full_outputs, full_inputs = layer.channels
    outputs, inputs = {full_outputs}, {full_inputs}
    for group in layers.groups:
        kept = [round(group.channels * (1 - share)) for share in channel_shares(group.channels, group.multiple(multiple))]
        if layer.name in group.writers:
            fixed_groups = 1 if shape is None or shape.is_blockwise else shape.groups
            outputs |= {count for count in kept if count % fixed_groups == 0}
        if each := group.readers.get(layer.name):
            inputs |= {full_inputs - each * (group.channels - count) for count in kept}
    return _thinned(sorted(inputs)), _thinned(sorted(outputs))


def _thinned(counts: Sequence[int]) -> tuple[int, ...]:
    """All of them, or every second, fourth, ... and both ends: multiples of more than the least channel multiple."""
    step, found = 1, set(counts)
    while len(found) > _POINTS:
        step *= 2
        found = {counts[0], *counts[step - 1 :: step], counts[-1]}
    return tuple(sorted(found))
