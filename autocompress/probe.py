"""A model and an example in, its layers and channel groups out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compress.channels import find_groups
from autocompress.errors import TaskError
from autocompress.layer import Kind, Layer, Layers
from autocompress.student import StudentLayer


@dataclass(frozen=True)
class Cost:
    """Parameters of a network, and multiply-accumulates of its convolutions and linear layers for one example."""

    params: int
    macs: int


def probe(model: nn.Module, example: Tensor) -> Layers:
    """The layers of `model` in the order they run, and the groups of channels that can be pruned.

    `example` is a batch of shape (n, ...). The model is left as it was. Raises `TaskError` when it does not run on the
    example or has no layer to compress.
    """
    was_training = model.training
    macs = _macs(model, example)
    if not macs:
        raise TaskError(
            "the model has no convolution (nn.Conv2d) and no linear layer (nn.Linear): there is nothing to compress"
        )
    groups, refused = find_groups(model, example)
    model.train(was_training)
    owner = {writer: group.name for group in groups for writer in group.writers}
    layers = tuple(
        Layer(
            name=name,
            kind=_kind(module),
            weight_shape=tuple(module.weight.shape),
            params=sum(parameter.numel() for parameter in module.parameters()),
            macs=macs[name],
            group=owner.get(name),
        )
        for name in macs
        for module in [model.get_submodule(name)]
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    others = {
        name: f"a {type(module).__name__} is neither pruned nor quantised"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase | nn.Embedding | nn.MultiheadAttention)
        and not isinstance(module, nn.Conv2d)
    }
    return Layers(layers=layers, groups=tuple(groups), left_alone=refused | others)


def cost(model: nn.Module, example: Tensor) -> Cost:
    """What `model` costs as it is now, after channels were cut. The scales of rounded weights are no parameters of it."""
    scales = {id(module.scale) for module in model.modules() if isinstance(module, StudentLayer)}
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in scales),
        macs=sum(_macs(model, example).values()),
    )


def _kind(module: nn.Module) -> Kind:
    return "linear" if isinstance(module, nn.Linear) else "conv2d"


def _macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    counted: dict[str, int] = {}

    def count(name: str, module: nn.Module, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = output.numel() // len(example) // weight.shape[0]
        counted[name] = counted.get(name, 0) + positions * weight.numel()

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: count(name, module, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | StudentLayer)
    ]
    try:
        with torch.no_grad():
            model.eval()(example)
    except Exception as error:
        raise TaskError(
            f"the model does not run on an example of shape {tuple(example.shape)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return counted
