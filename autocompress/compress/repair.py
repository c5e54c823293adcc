"""The weights that are left, refitted so that each layer gives what it gave in the uncompressed network.

One pass over a few hundred examples, in the order in which the network runs: a layer that was changed sees what the
compressed and already repaired layers before it make of the examples, and is fitted by least squares to its outputs in
the uncompressed network (as Optimal Brain Compression does: Frantar and Alistarh, 2022). No gradient step.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.least_squares import refit, round_with_compensation, second_moments, squared_error
from autocompress.compress.samples import by_group, choose_places, extent, inputs_at, outputs_at
from autocompress.student import StudentLayer, best_scales, largest_code

# Twice as many gain 0.4 points on ResNet-20 and take twice the time.
_EXAMPLES = 256
# A bound on memory: of large examples there are fewer.
_MOST_VALUES = 2**22
# Beyond so many inputs of an output the moments take too much memory and time: the weights stay as they are.
_WIDEST = 4608
# A layer whose outputs are off by no larger share of their square has nothing to repair.
_NEAR = 1e-6

_Hook = Any  # torch's handle of a registered hook


class _LastLayerRan(Exception):  # noqa: N818  # no error: what comes after that layer is of no interest
    pass


@dataclass(frozen=True)
class _Sample:
    """What a layer gave at some places, shape (places, out), and the extent of its inputs there."""

    extent: tuple[int, ...]
    places: Tensor
    outputs: Tensor


def repair_weights(student: nn.Module, model: nn.Module, kept: Mapping[str, Tensor], calibration: Tensor) -> None:
    """Refits and rounds again, in place, the layers of `student` that were masked, rounded or cut.

    `model` is what the student was made from, `kept` the output channels left of each layer that was cut, `calibration`
    holds inputs (n, ...). Biases of those layers are shifted until the mean outputs agree. Left as they are: layers that
    run more than once, share their weights, are frozen or compute in another way or precision, and every row of weights that
    would not come nearer.
    """
    examples = calibration[: min(_EXAMPLES, _MOST_VALUES // calibration[0].numel())]
    teacher = deepcopy(model).eval()
    changed = _changed(student.eval(), teacher)
    if not changed or len(examples) < 2:  # a batch norm cannot estimate anything from one example
        return
    calls = _calls(teacher, examples[:2])
    samples = _samples(teacher, [name for name in calls if name in changed and calls.count(name) == 1], examples)
    handles: list[_Hook] = []
    for name, sample in samples.items():
        layer = student.get_submodule(name)
        channels = kept.get(name, slice(None))
        sample = _Sample(sample.extent, sample.places, sample.outputs[:, channels])
        handles.append(layer.register_forward_pre_hook(partial(_refit_weights, sample)))
        handles.append(layer.register_forward_hook(partial(_shift_bias, sample)))
    with _batch_statistics(student):
        _run(student, examples, handles, last=[*samples, None][-1])


def _changed(student: nn.Module, teacher: nn.Module) -> set[str]:
    uses = Counter(id(parameter) for module in teacher.modules() for parameter in module._parameters.values())
    return {
        name
        for name, layer in teacher.named_modules()
        if type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)
        and isinstance(layer, nn.Conv2d | nn.Linear)
        and isinstance(layer.weight, nn.Parameter)
        and layer.weight.requires_grad
        and layer.weight.dtype == torch.float32
        and uses[id(layer.weight)] == 1
        and _is_changed(student.get_submodule(name), layer)
    }


def _is_changed(module: nn.Module, before: nn.Conv2d | nn.Linear) -> bool:
    return isinstance(module, StudentLayer) or _plain(module).weight.shape != before.weight.shape


def _plain(module: nn.Module) -> nn.Conv2d | nn.Linear:
    layer = module.layer if isinstance(module, StudentLayer) else module
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _calls(teacher: nn.Module, examples: Tensor) -> list[str]:
    """The layers' names in the order in which they run; a name comes as often as its layer runs."""
    calls: list[str] = []
    layers = [(name, module) for name, module in teacher.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    _run(teacher, examples, [layer.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, layer in layers])
    return calls


def _samples(teacher: nn.Module, names: Sequence[str], examples: Tensor) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}

    def sample(name: str, layer: nn.Module, arguments: tuple[Any, ...], outputs: Tensor) -> None:
        plain = _plain(layer)
        if len(arguments) == 1 and (isinstance(plain, nn.Linear) or outputs.dim() == 4):
            places = choose_places(plain, outputs)
            samples[name] = _Sample(extent(plain, arguments[0]), places, outputs_at(plain, outputs, places))

    handles = [teacher.get_submodule(name).register_forward_hook(partial(sample, name)) for name in names]
    _run(teacher, examples, handles, last=[*names, None][-1])
    return samples


def _run(model: nn.Module, examples: Tensor, handles: list[_Hook], last: str | None = None) -> None:
    """Runs `model` with these hooks, which are then removed, up to the layer named `last`."""

    def stop(*_: object) -> None:
        raise _LastLayerRan

    if last is not None:
        handles = [*handles, model.get_submodule(last).register_forward_hook(stop)]
    try:
        with torch.no_grad(), suppress(_LastLayerRan):
            model(examples)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _batch_statistics(student: nn.Module) -> Iterator[None]:
    """Lets batch norms go by the batch they see: their statistics are those of other weights."""
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _refit_weights(sample: _Sample, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    layer = _plain(module)
    if len(arguments) != 1 or extent(layer, arguments[0]) != sample.extent or layer.weight[0].numel() > _WIDEST:
        return
    inputs = inputs_at(layer, arguments[0], sample.places)
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
        scale = best_scales(weight.flatten(0, 1), student.bits)
        grid = scale.view(weight.shape[:2])
        weight = round_with_compensation(weight, grid, largest_code(student.bits), moments, mask)
    nearer = (squared_error(weight, inputs, outputs) < error).flatten()
    layer.weight[nearer] = weight.reshape(layer.weight.shape)[nearer]
    if student is not None and student.scale is not None and scale is not None:
        student.scale[nearer] = scale[nearer]


def _shift_bias(sample: _Sample, module: nn.Module, arguments: tuple[Any, ...], outputs: Tensor) -> Tensor | None:
    layer = _plain(module)
    if layer.bias is None or len(arguments) != 1 or extent(layer, arguments[0]) != sample.extent:
        return None
    shift = sample.outputs.mean(0) - outputs_at(layer, outputs, sample.places).mean(0)
    if not shift.isfinite().all():
        return None
    layer.bias += shift
    return outputs + (shift.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else shift)
