"""What becomes of single weights: which are zero, and in how many bits the others are stored."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.errors import SurgeryError
from autocompress.policy import LayerPolicy
from autocompress.student import Plain, StudentLayer, kind_of


def compress_weights(model: nn.Module, layers: Mapping[str, LayerPolicy]) -> None:
    """Replaces the named layers of `model` in place by student layers that are masked and rounded as their policy says.

    Raises `SurgeryError` for a layer that has not one weight as torch's convolutions, linear layers and embeddings have, and
    for groups and dynamic ranges of anything but a linear layer.
    """
    for name, policy in layers.items():
        layer = model.get_submodule(name)
        if kind_of(layer) is None:
            raise SurgeryError(f"layer {name!r} is a {type(layer).__name__}, which cannot be compressed")
        assert isinstance(layer, Plain)
        dynamic = policy.activation_range == "dynamic"
        if (dynamic or policy.group_size is not None) and not isinstance(layer, nn.Linear):
            what = "a dynamic activation_range" if dynamic else "group_size"
            raise SurgeryError(f"layer {name!r} is a {type(layer).__name__}: {what} is for linear layers")
        mask = largest_weights(layer.weight, policy.weight_sparsity) if policy.weight_sparsity else None
        student = StudentLayer(
            layer,
            bits=policy.weight_bits,
            mask=mask,
            group_size=policy.group_size,
            activation_range=policy.activation_range if policy.activation_bits else None,
        )
        for alias in [other for other, module in model.named_modules(remove_duplicate=False) if module is layer]:
            model.set_submodule(alias, student)


def largest_weights(weight: Tensor, sparsity: float) -> Tensor:
    """A mask of `weight`'s shape that is False for the share `sparsity` of smallest magnitude (rounded down)."""
    zeros = int(sparsity * weight.numel())
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[weight.detach().abs().flatten().argsort()[:zeros]] = False
    return mask.view(weight.shape)
