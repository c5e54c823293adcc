"""A model and an example in, its layers and channel groups out."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.compress.activations import quantisable_activations
from autocompress.compress.branches import with_branches
from autocompress.compress.channels import find_groups
from autocompress.errors import TaskError
from autocompress.layer import Layer, Layers
from autocompress.nested import Nested
from autocompress.student import Plain, StudentLayer, kind_of, only_input, plain_of


@dataclass(frozen=True)
class Cost:
    """Parameters of a network, and multiply-accumulates of its convolutions and linear layers for one example."""

    params: int
    macs: int


def probe(model: nn.Module, example: Nested) -> Layers:
    """The layers of `model` in the order they run, and the groups of channels that can be pruned.

    `example` is a batch of shape (n, ...). The model is left as it was. Raises `TaskError` when it does not run on the
    example or has no layer to compress.
    """
    was_training = model.training
    macs = _macs(model, example)
    if not macs:
        raise TaskError(
            "the model has no convolution, no linear layer (nn.Linear) and no embedding: there is nothing to compress"
        )
    groups, refused = find_groups(model, example)
    groups = with_branches(model, groups, example)
    model.train(was_training)
    integer = set(quantisable_activations(model, example))
    owner = {writer: group.name for group in groups for writer in group.writers}
    layers = tuple(
        Layer(
            name=name,
            kind=kind,
            weight_shape=tuple(module.weight.shape),
            params=sum(parameter.numel() for parameter in module.parameters()),
            macs=macs[name],
            group=owner.get(name),
            integer=name in integer,
        )
        for name in macs
        for module in [model.get_submodule(name)]
        if isinstance(module, Plain) and (kind := kind_of(module)) is not None
    )
    return Layers(layers=layers, groups=tuple(groups), left_alone=refused | dict(_others(model, macs)))


def _others(model: nn.Module, called: Collection[str]) -> Iterator[tuple[str, str]]:
    """The modules that hold matrices of weights but are no layers to compress, with the reason."""
    packed = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    for name, module in model.named_modules():
        weights = [own for own, parameter in module.named_parameters(recurse=False) if parameter.dim() > 1]
        if not weights or name in called or name.startswith(packed):
            continue
        if kind_of(module) is not None:
            yield name, "its weight is used without calling it"
        elif type(module).__module__.startswith("torch.nn."):
            yield name, f"a {type(module).__name__} is neither pruned nor quantised"
        else:
            for own in weights:
                yield (
                    f"{name}.{own}" if name else own,
                    f"a parameter of a {type(module).__name__}, not of one of torch's layers",
                )


def cost(model: nn.Module, example: Nested) -> Cost:
    """What `model` costs as it is now, after channels were cut. The scales of rounded weights are no parameters of it."""
    scales = {id(module.scale) for module in model.modules() if isinstance(module, StudentLayer)}
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in scales),
        macs=sum(_macs(model, example).values()),
    )


def _macs(model: nn.Module, example: Nested) -> dict[str, int]:
    counted: dict[str, int] = {}
    examples = nested.count(example)

    def count(name: str, module: nn.Module, given: Tensor, output: Tensor) -> None:
        plain = plain_of(module)
        weight = plain.weight
        assert isinstance(weight, Tensor)
        if isinstance(plain, nn.Embedding):  # looks up, and multiplies nothing
            counted.setdefault(name, 0)
            return
        transposed = isinstance(plain, nn.modules.conv._ConvTransposeNd)
        values = (given if transposed else output).numel() // examples
        counted[name] = counted.get(name, 0) + values // weight.shape[0] * weight.numel()

    hooks = [
        module.register_forward_hook(
            lambda module, given, named, output, name=name: count(name, module, only_input(given, named), output),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if isinstance(module, StudentLayer) or kind_of(module) is not None
    ]
    try:
        with torch.no_grad():
            nested.call(model.eval(), example)
    except Exception as error:
        raise TaskError(
            f"the model does not run on an example of shape {nested.shapes(example)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return counted
