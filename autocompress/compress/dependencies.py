"""The channels of a network that can only be cut together, as torch-pruning finds them (DepGraph: Fang et al., 2023)."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import Parameter

from autocompress import nested
from autocompress.layer import Group
from autocompress.nested import Nested
from autocompress.student import kind_of

_READ = (nn.modules.conv._ConvNd, nn.Linear)
# Layers whose channels can be cut.
CUT = (*_READ, nn.Embedding)
# Norms over the channels, which give something else when some are gone.
NORMS = (nn.LayerNorm, nn.RMSNorm)


@contextmanager
def all_trained(model: nn.Module) -> Iterator[None]:
    """Lets gradients flow to frozen parameters; afterwards they, or those that took their place, are frozen again."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for name in frozen:
        model.get_parameter(name).requires_grad_()
    try:
        yield
    finally:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)


def dependencies(model: nn.Module, example: Nested) -> Any:
    """The graph of the library, of `model` on the batch `example` (n, ...)."""
    # torch-pruning finds dependencies by the autograd graph: without gradients it would see one group only.
    with torch.enable_grad(), all_trained(model):
        return _Graph().build_dependency(model.eval(), example_inputs=example, forward_fn=_float_outputs, verbose=False)


def _float_outputs(model: nn.Module, example: Nested) -> tuple[torch.Tensor, ...]:
    return tuple(part for part in nested.arrays(nested.call(model, example)) if part.is_floating_point())


def group_at(graph: Any, root: nn.Module, channels: Sequence[int] | None) -> Any:
    """All that goes with those output channels of `root` (None: all of them), as the library's `graph` knows it."""
    cut = graph.get_pruner_of_module(root).prune_out_channels
    if channels is None:
        channels = range(graph.get_out_channels(root))
    return graph.get_pruning_group(root, cut, idxs=list(channels))


def left_of(width: int, doomed: Collection[int]) -> torch.Tensor:
    """The channels of so many that are not `doomed`, in their order."""
    gone = set(doomed)
    return torch.tensor([channel for channel in range(width) if channel not in gone])


def described(group: Any, graph: Any, names: dict[nn.Module, str]) -> Group:
    """A group of the library's `graph` as one of ours; `names` are those of all modules, in their order."""
    writers = _writers(group, names, graph.is_out_channel_pruning_fn)
    channels = len(group[0].idxs)
    return Group(
        name=writers[0],
        channels=channels,
        writers=writers,
        readers=_readers(group, names, graph.is_in_channel_pruning_fn),
        extra_params=_extra_params(group) // channels,
    )


def stranger_in(group: Any, names: dict[nn.Module, str]) -> str | None:
    """The first layer among those with the channels of `group` of which compression knows nothing, if any."""
    members = (dependency.target.module for dependency, _ in group)
    layers = (member for member in members if isinstance(member, (*CUT, nn.RNNBase)))
    return next((names[layer] for layer in layers if kind_of(layer) is None), None)


def _writers(group: Any, names: dict[nn.Module, str], side: Callable[[Any], bool]) -> tuple[str, ...]:
    found = {dependency.target.module for dependency, _ in group if side(dependency.handler)}
    return tuple(name for module, name in names.items() if isinstance(module, CUT) and module in found)


def _readers(group: Any, names: dict[nn.Module, str], side: Callable[[Any], bool]) -> dict[str, int]:
    """Those who read the channels of the group, and how many inputs each channel is to them. An embedding reads words."""
    places: Counter[str] = Counter()
    for dependency, indices in group:
        if side(dependency.handler):
            places[names.get(dependency.target.module, "")] += len(indices)
    members = [name for module, name in names.items() if isinstance(module, _READ) and name in places]
    in_groups = {name for module, name in names.items() if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1}
    return {name: 0 if name in in_groups else places[name] // len(group[0].idxs) for name in members}


def _extra_params(group: Any) -> int:
    """The numbers that go with the group's channels outside of its layers, and of batch norms, which are folded into those."""
    count = 0
    for dependency, indices in group:
        member = dependency.target.module
        if isinstance(member, (*NORMS, nn.GroupNorm)):
            count += sum(len(indices) for _ in member.parameters())
        elif isinstance(member, Parameter):
            count += member.numel() // member.shape[dependency.target.pruning_dim] * len(indices)
    return count


class _BlockwiseConvPruner(tp.pruner.function.DepthwiseConvPruner):  # type: ignore[misc]  # the library has no types
    """Cuts inputs and outputs of a grouped convolution alike: whole groups of it."""

    def prune_out_channels(self, layer: nn.Conv2d, idxs: Sequence[int]) -> nn.Conv2d:
        before, groups = layer.out_channels, layer.groups
        super().prune_out_channels(layer, idxs)
        layer.groups = max(1, groups * layer.out_channels // before)
        return layer

    prune_in_channels = prune_out_channels


class _Graph(tp.DependencyGraph):  # type: ignore[misc]  # the library has no types
    """The library's graph, with a way to cut grouped convolutions, and norms in order."""

    def __init__(self) -> None:
        super().__init__()
        self._blockwise, self._norm = _BlockwiseConvPruner(), _NormPruner()
        self.register_customized_layer(nn.RMSNorm, self._norm)
        for known in (self._in_channel_pruning_fn, self._out_channel_pruning_fn):
            known |= {self._blockwise.prune_out_channels, self._norm.prune_out_channels}

    def get_pruner_of_module(self, module: nn.Module) -> Any:
        if isinstance(module, NORMS):
            return self._norm
        return self._blockwise if _is_blockwise(module) else super().get_pruner_of_module(module)


class _NormPruner(tp.pruner.function.LayernormPruner):  # type: ignore[misc]  # the library has no types
    """Keeps the channels in their order: the library's own takes that of a set, in which 9 comes before 3."""

    def prune_out_channels(self, layer: nn.LayerNorm | nn.RMSNorm, idxs: Sequence[int]) -> nn.LayerNorm | nn.RMSNorm:
        *outer, width = layer.normalized_shape
        kept = left_of(width, idxs)
        for name in ("weight", "bias"):
            if (parameter := getattr(layer, name, None)) is not None:
                setattr(layer, name, self._prune_parameter_and_grad(parameter, kept, -1))
        layer.normalized_shape = (*outer, len(kept))
        return layer

    prune_in_channels = prune_out_channels


def _is_blockwise(module: nn.Module) -> bool:
    """True for a convolution in groups of several channels, with as many inputs as outputs."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and 1 < module.groups < module.out_channels
        and module.in_channels == module.out_channels
    )
