"""A pruned network's reference: the whole network with the channels zeroed that were cut."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress import nested
from autocompress.compress.dependencies import NORMS, group_at, left_of
from autocompress.errors import SurgeryError
from autocompress.nested import Nested
from autocompress.student import channel_axis

# The largest difference, as a share of the largest output, that float rounding may make between the two.
TOLERANCE = 1e-3
# The functions that norms call, and the order of what they are given.
_LAYER_NORM, _RMS_NORM = (
    ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
    ("input", "normalized_shape", "weight", "eps"),
)
_NORM_CALLS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((nn.functional.layer_norm, torch.layer_norm), _LAYER_NORM),
    **dict.fromkeys((nn.functional.rms_norm, torch.rms_norm), _RMS_NORM),
}
ARE_OUTPUTS = "its channels are the outputs of the network"


def mask(model: nn.Module, graph: Any, doomed: Mapping[str, Sequence[int]]) -> None:
    """Zeroes those channels of each group root of `model`, in place; `graph` is the library's, of `model`.

    Norms go over the channels that are left. Raises `SurgeryError` for one that goes over more than channels.
    """
    silenced: dict[nn.LayerNorm | nn.RMSNorm, set[int]] = {}
    for root, channels in doomed.items():
        group = group_at(graph, model.get_submodule(root), channels)
        _silence(group, graph)
        for dependency, those in group:
            if isinstance(norm := dependency.target.module, NORMS):
                silenced.setdefault(norm, set()).update(those)
    for norm, those in silenced.items():
        _norm_others(norm, those)


def compare(pruned: nn.Module, reference: nn.Module, example: Nested) -> None:
    """Raises `SurgeryError` unless both give the same for the batch `example` (n, ...)."""
    was_training = pruned.training
    with torch.no_grad():
        try:
            got = nested.call(pruned.eval(), example)
        except RuntimeError as error:
            raise SurgeryError(f"the pruned network does not run: {str(error).splitlines()[0]}") from error
        expected = nested.call(reference.eval(), example)
    pruned.train(was_training)
    if nested.shapes(got) != nested.shapes(expected):
        raise SurgeryError(ARE_OUTPUTS)
    gap = max(_gap(*pair) for pair in zip(nested.arrays(got), nested.arrays(expected), strict=True))
    if not gap <= TOLERANCE:
        raise SurgeryError(
            f"the pruned network differs from the one with those channels zeroed by {gap:.1%} of its largest output"
        )


def _silence(group: Any, graph: Any) -> None:
    with torch.no_grad():
        for dependency, channels in group:
            module = dependency.target.module
            if isinstance(module, nn.Parameter):  # of the network's own
                module.movedim(dependency.target.pruning_dim, 0)[channels] = 0
            writes = graph.is_out_channel_pruning_fn(dependency.handler)
            if not writes or not isinstance(module, nn.Module):
                continue
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if weight is not None:
                weight.movedim(channel_axis(module), 0)[channels] = 0
            if bias is not None:
                bias[channels] = 0


class _NormOfThoseLeft(TorchFunctionMode):
    """Within it a norm goes over some of its channels alone, and gives zeros for the others."""

    def __init__(self, left: Tensor) -> None:
        super().__init__()
        self._left = left

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _NORM_CALLS:
            return func(*args, **(kwargs or {}))
        given = dict(zip(_NORM_CALLS[func], args, strict=False)) | (kwargs or {})
        inputs = given.pop("input")
        scales = {name: given[name][self._left] for name in ("weight", "bias") if given.get(name) is not None}
        outputs = torch.zeros_like(inputs)
        outputs[..., self._left] = func(inputs[..., self._left], **(given | scales | {"normalized_shape": [len(self._left)]}))
        return outputs


def _norm_others(norm: nn.LayerNorm | nn.RMSNorm, doomed: Collection[int]) -> None:
    """Has `norm` go over its channels as if the `doomed` ones were not there: those give zeros."""
    if len(norm.normalized_shape) > 1:
        raise SurgeryError(f"a {type(norm).__name__} goes over its channels and over their places at once")
    left = left_of(norm.normalized_shape[0], doomed)
    whole = norm.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with _NormOfThoseLeft(left):
            outputs: Tensor = whole(*args, **kwargs)
        return outputs

    norm.forward = forward  # type: ignore[method-assign]


def _gap(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
