"""The weights that are left, refitted so that each layer gives what it gave in the uncompressed network.

One pass over a few hundred examples, in the order in which the network runs: a layer that was changed, or comes after one,
sees what the compressed and already repaired layers before it make of the examples, and is fitted by least squares to its
outputs in the uncompressed network (as Optimal Brain Compression does: Frantar and Alistarh, 2022). No gradient step.
"""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.compress.calibrate import NormStatistics
from autocompress.compress.least_squares import refit, round_with_compensation, second_moments, squared_error
from autocompress.compress.samples import by_group, choose_places, extent, inputs_at, outputs_at
from autocompress.graph import BatchNorm
from autocompress.nested import Nested
from autocompress.student import StudentLayer, largest_code, only_input, plain_of

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

# So many places for each input of an output, that a fit to them holds elsewhere.
_PLACES_PER_INPUT = 8
# Twice as many gain 0.4 points on ResNet-20 and take twice the time.
_EXAMPLES = 256
# A bound on memory: of large examples there are fewer.
_MOST_VALUES, _FEWEST_EXAMPLES = 2**22, 8
# Beyond so many inputs of an output the moments take too much memory and time: the weights stay as they are.
_WIDEST = 4608
# A layer whose outputs are off by no larger share of their square has nothing to repair.
_NEAR = 1e-6


@dataclass(frozen=True)
class _Sample:
    """What a layer gave at some places, shape (places, out), and the extent of its inputs there."""

    extent: tuple[int, ...]
    places: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Seen:
    """What the examples brought about in the uncompressed network, by the name of the layer or batch norm."""

    samples: dict[str, _Sample] = field(default_factory=dict)
    statistics: dict[str, NormStatistics] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)


def look(model: nn.Module, calibration: Nested, *, places_per_input: int = _PLACES_PER_INPUT) -> Seen:
    """What some of the inputs `calibration` (n, ...) bring about in `model`, the uncompressed network.

    Of each layer so many places (pixels of any example, or rows) are noted for each input of an output.

    Left out are layers that are frozen, share their weights or compute in another way or precision than torch's.
    """
    seen = Seen()

    def sample(name: str, layer: nn.Module, arguments: Arguments, keywords: Keywords, outputs: Tensor) -> None:
        seen.runs[name] += 1
        plain, given = _plain(layer), only_input(arguments, keywords)
        if given is not None and (isinstance(plain, nn.Linear) or outputs.dim() == 4):
            places = choose_places(plain, outputs, places_per_input)
            seen.samples[name] = _Sample(extent(plain, given), places, outputs_at(plain, outputs, places))

    def observe(name: str, norm: nn.Module, arguments: Arguments, keywords: Keywords) -> None:
        seen.runs[name] += 1
        given = only_input(arguments, keywords)
        if given is not None and isinstance(norm, BatchNorm) and norm.running_mean is not None:
            seen.statistics[name] = NormStatistics.of(norm, given)

    teacher = deepcopy(model).eval()
    layers = [(name, teacher.get_submodule(name)) for name in _refittable(teacher)]
    handles = [layer.register_forward_hook(partial(sample, name), with_kwargs=True) for name, layer in layers]
    norms = [(name, module) for name, module in teacher.named_modules() if isinstance(module, BatchNorm)]
    handles += [norm.register_forward_pre_hook(partial(observe, name), with_kwargs=True) for name, norm in norms]
    _run(teacher, repair_examples(calibration), handles)
    return seen


def repair_weights(student: nn.Module, seen: Seen, kept: Mapping[str, Tensor], calibration: Nested) -> list[nn.Module]:
    """Refits and rounds again, in place, the layers of `student` that give something else than in the uncompressed network.

    `seen` is what `look` saw of the same inputs `calibration` (n, ...) there, `kept` the channels left of each layer and
    batch norm when some were cut. Biases of those layers are shifted until the mean outputs agree, and batch norms follow;
    gives the batch norms that did. Left as they are: layers that run more than once, and every row of weights that would
    not come nearer.
    """
    left = {name for name, _ in student.named_modules()}
    handles, followed = [], []
    for name, sample in seen.samples.items():
        if seen.runs[name] == 1 and name in left:
            layer = student.get_submodule(name)
            sample = _Sample(sample.extent, sample.places, sample.outputs[:, kept.get(name, slice(None))])
            handles.append(layer.register_forward_pre_hook(partial(_refit_weights, sample), with_kwargs=True))
            handles.append(layer.register_forward_hook(partial(_shift_bias, sample), with_kwargs=True))
    for name, statistics in seen.statistics.items():
        if seen.runs[name] == 1 and name in left:
            norm = student.get_submodule(name)
            followed.append(norm)
            follow = partial(_follow, statistics, kept.get(name, slice(None)))
            handles.append(norm.register_forward_pre_hook(follow, with_kwargs=True))
    _run(student, repair_examples(calibration), handles)
    return followed


def repair_examples(calibration: Nested) -> Nested:
    """Those of the inputs (n, ...) that weights are refitted to."""
    values = sum(part[0].numel() for part in nested.arrays(calibration))
    return nested.take(calibration, slice(max(_FEWEST_EXAMPLES, min(_EXAMPLES, _MOST_VALUES // values))))


def _refittable(model: nn.Module) -> list[str]:
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    return [
        name
        for name, layer in model.named_modules()
        if type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)
        and isinstance(layer, nn.Conv2d | nn.Linear)
        and isinstance(layer.weight, nn.Parameter)
        and layer.weight.requires_grad
        and layer.weight.dtype == torch.float32
        and uses[id(layer.weight)] == 1
        and (layer.bias is None or uses[id(layer.bias)] == 1)
    ]


def _plain(module: nn.Module) -> nn.Conv2d | nn.Linear:
    layer = plain_of(module)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _run(model: nn.Module, examples: Nested, handles: list[Any]) -> None:
    """Runs `model` with the hooks that these are the handles of: they are then removed."""
    try:
        with torch.no_grad():
            nested.call(model, examples)
    finally:
        for handle in handles:
            handle.remove()


def _follow(
    statistics: NormStatistics, channels: Tensor | slice, norm: nn.Module, arguments: Arguments, keywords: Keywords
) -> None:
    assert isinstance(norm, BatchNorm)
    statistics.carry_over(norm, only_input(arguments, keywords), channels)


def _refit_weights(sample: _Sample, module: nn.Module, arguments: Arguments, keywords: Keywords) -> None:
    layer, given = _plain(module), only_input(arguments, keywords)
    if given is None or extent(layer, given) != sample.extent or layer.weight[0].numel() > _WIDEST:
        return
    inputs = inputs_at(layer, given, sample.places)
    outputs = by_group(layer, sample.outputs.T).transpose(1, 2)
    if layer.bias is not None:  # the bias will see to the mean
        inputs, outputs = inputs - inputs.mean(1, keepdim=True), outputs - outputs.mean(1, keepdim=True)
    student = module if isinstance(module, StudentLayer) else None
    acting = by_group(layer, layer.weight if student is None else student.effective_weight())
    error = squared_error(acting, inputs, outputs)
    if error.sum() <= _NEAR * outputs.square().sum():
        return
    mask = None if student is None or student.mask is None else by_group(layer, student.mask)
    moments = second_moments(inputs)
    weight = by_group(layer, layer.weight)
    weight = refit(weight if mask is None else weight * mask, inputs, outputs, moments, mask)
    scale = None
    if student is not None and student.scale is not None and student.bits is not None:
        scale = student.best_scales(weight.reshape(layer.weight.shape))
        steps = by_group(layer, student.steps(scale)).expand_as(weight)
        weight = round_with_compensation(weight, steps, largest_code(student.bits), moments, mask)
    nearer = (squared_error(weight, inputs, outputs) < error).flatten()
    layer.weight[nearer] = weight.reshape(layer.weight.shape)[nearer]
    if student is not None and student.scale is not None and scale is not None:
        student.scale[nearer] = scale[nearer]


def _shift_bias(sample: _Sample, module: nn.Module, arguments: Arguments, keywords: Keywords, outputs: Tensor) -> Tensor | None:
    layer, given = _plain(module), only_input(arguments, keywords)
    if layer.bias is None or not layer.bias.requires_grad or given is None or extent(layer, given) != sample.extent:
        return None
    shift = sample.outputs.mean(0) - outputs_at(layer, outputs, sample.places).mean(0)
    if not shift.isfinite().all():
        return None
    layer.bias += shift
    return outputs + (shift.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else shift)
