"""The weights that are left, refitted so that each layer gives what it gave in the uncompressed network.

One pass over a few hundred examples, in the order in which the network runs: a layer that was changed sees what the
compressed and already repaired layers before it make of the examples, and is fitted by least squares to its outputs in
the uncompressed network (as Optimal Brain Compression does it: Frantar and Alistarh, 2022). No gradient step.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.least_squares import refit, round_with_compensation, second_moments, squared_error
from autocompress.compress.samples import Fitted, by_group, choose_places, extent, inputs_at, outputs_at
from autocompress.student import StudentLayer, best_scales, largest_code

# More examples, and layers that only read what changed, were tried: ResNet-20 gains 0.3 points by twice the examples, and
# nothing by the latter.
_EXAMPLES = 256
# A bound on memory: large examples are fewer.
_MOST_VALUES = 2**22
# Beyond so many inputs of an output the moments take too much memory; the weights stay as they are.
_WIDEST = 4608
# A layer whose outputs are this near, as a share of their square, has nothing to repair.
_NEAR = 1e-6


class _LastLayerSeen(Exception):  # noqa: N818  # not an error: nothing after that layer is of interest
    pass


@dataclass(frozen=True)
class _Sample:
    """What a layer gave in the uncompressed network, shape (places, out), and for inputs of which extent."""

    extent: tuple[int, ...]
    places: Tensor
    outputs: Tensor


def repair(student: nn.Module, model: nn.Module, kept: Mapping[str, Tensor], calibration: Tensor) -> None:
    """Refits, rounds again and shifts in place the layers of `student` that compression changed.

    These are the layers that are masked or rounded, and those whose inputs were cut. `model` is what the student was made
    from, and `kept` names the output channels that are left of each of its layers. Layers that run more than once, that
    share their weights, whose weights are frozen or which compute something of their own are left as they are, and so
    is a row of weights that a refit would not bring nearer.
    """
    examples = calibration[: max(2, min(_EXAMPLES, _MOST_VALUES // max(1, calibration[0].numel())))]
    teacher = deepcopy(model).eval()
    changed = _changed(student.eval(), teacher) if len(examples) > 1 else set()
    if not changed:
        return
    calls = _calls(teacher, examples[:2])
    names = [name for name in calls if name in changed and calls.count(name) == 1]
    samples = _samples(teacher, names, examples)
    for name, channels in kept.items():
        if name in samples:
            sample = samples[name]
            samples[name] = _Sample(sample.extent, sample.places, sample.outputs[:, channels])
    with _batch_statistics(student):
        _repair_in_order(student, samples, examples)


def _changed(student: nn.Module, teacher: nn.Module) -> set[str]:
    uses = Counter(id(parameter) for module in teacher.modules() for parameter in module.parameters(recurse=False))
    return {
        name
        for name, layer in teacher.named_modules()
        if isinstance(layer, Fitted)
        and type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)
        and isinstance(layer.weight, nn.Parameter)
        and layer.weight.requires_grad
        and uses[id(layer.weight)] == 1
        and _is_changed(student.get_submodule(name), layer)
    }


def _is_changed(module: nn.Module, before: Fitted) -> bool:
    return isinstance(module, StudentLayer) or _plain(module).weight.shape[1:] != before.weight.shape[1:]


def _plain(module: nn.Module) -> Fitted:
    layer = module.layer if isinstance(module, StudentLayer) else module
    assert isinstance(layer, Fitted)
    return layer


def _calls(teacher: nn.Module, examples: Tensor) -> list[str]:
    """The names of the layers in the order in which they run, a layer that runs twice twice."""
    calls: list[str] = []
    hooks = {
        name: lambda _module, _arguments, _outputs, name=name: calls.append(name)
        for name, module in teacher.named_modules()
        if isinstance(module, Fitted)
    }
    _run(teacher, examples, hooks)
    return calls


def _samples(teacher: nn.Module, names: Sequence[str], examples: Tensor) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}

    def sample(name: str, layer: nn.Module, arguments: tuple[Any, ...], outputs: Tensor) -> None:
        assert isinstance(layer, Fitted)
        if len(arguments) == 1 and outputs.dim() == (4 if isinstance(layer, nn.Conv2d) else outputs.dim()):
            places = choose_places(layer, outputs)
            samples[name] = _Sample(extent(layer, arguments[0]), places, outputs_at(layer, outputs, places))

    _run(teacher, examples, {name: partial(sample, name) for name in names})
    return samples
