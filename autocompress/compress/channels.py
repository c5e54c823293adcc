"""Structured pruning: which channels can be cut together, and cutting them for good (DepGraph: Fang et al., 2023)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from autocompress.compress.calibrate import BatchNorm
from autocompress.errors import SurgeryError
from autocompress.layer import Group
from autocompress.policy import Importance
from autocompress.student import per_channel

# The largest difference, as a share of the largest output, that float rounding may make between a pruned network and
# the same network with the removed channels zeroed.
TOLERANCE = 1e-3


def find_groups(model: nn.Module, example: Tensor) -> tuple[list[Group], dict[str, str]]:
    """The channel groups of `model` that can be cut, and the layers whose channels cannot, with the reason.

    Every group is tried: a third of its channels is cut, and the outputs compared with the same network in which those
    channels are zero. `example` is a batch of shape (n, ...).
    """
    graph = _graph(model, example)
    names = {module: name for name, module in graph.model.named_modules()}
    found: list[Group] = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        writers = _members(group, names, graph.is_out_channel_pruning_fn)
        readers = _members(group, names, graph.is_in_channel_pruning_fn)
        found.append(Group(name=writers[0], channels=len(group[0].idxs), writers=writers, readers=readers))
    order = {name: place for place, name in enumerate(names.values())}
    usable: list[Group] = []
    refused: dict[str, str] = {}
    for candidate in sorted(found, key=lambda group: order[group.name]):
        reason = _why_not(model, candidate, example)
        if reason is None:
            usable.append(candidate)
        else:
            refused |= dict.fromkeys(candidate.writers, reason)
    return usable, refused


def prune(
    model: nn.Module,
    keep: dict[str, int],
    importance: Importance,
    example: Tensor,
    gradients: Callable[[nn.Module], None] | None = None,
) -> dict[str, Tensor]:
    """Cuts channels of `model` in place until each group named in `keep` has that many, least important first.

    `importance` "taylor" needs `gradients`, which leaves the gradient of the training loss in the parameters. Gives the
    places of the channels that are left of each layer and batch norm, among those it had. Raises `SurgeryError` when the
    result differs from the network with the removed channels zeroed.
    """
    if not keep:
        return {}
    if importance == "taylor":
        if gradients is None:
            raise ValueError("importance 'taylor' needs gradients")
        gradients(model)
    graph = _graph(model, example)
    scores = {root: _scores(graph, model.get_submodule(root), importance) for root in keep}
    doomed = {root: scores[root].argsort()[: len(scores[root]) - kept].tolist() for root, kept in keep.items()}
    left = _cut(model, doomed, example)
    model.zero_grad(set_to_none=True)
    return left


def _cut(model: nn.Module, doomed: dict[str, list[int]], example: Tensor) -> dict[str, Tensor]:
    """Removes those channels of each group root; raises `SurgeryError` when that is not the same as zeroing them.

    Gives the channels that are left of each layer and batch norm.
    """
    reference = deepcopy(model).eval()
    masked, graph = _graph(reference, example), _graph(model, example)
    for root, channels in doomed.items():
        _silence(_group_at(masked, reference.get_submodule(root), channels), masked)
    for root, channels in doomed.items():
        _group_at(graph, model.get_submodule(root), channels).prune()
    _compare(model, reference, example)
    return _left(masked, reference, doomed)


def _left(graph: Any, reference: nn.Module, doomed: dict[str, list[int]]) -> dict[str, Tensor]:
    """The channels that are left of each layer and batch norm: `reference` is cut with its channels numbered."""
    layers, norms = {}, {}
    for name, module in reference.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # In single precision: half of it cannot tell 599 from 600.
            numbers = torch.arange(len(module.weight), dtype=torch.float32, device=module.weight.device)
            module.weight.data = per_channel(numbers, module.weight).repeat(1, *module.weight.shape[1:])
            layers[name] = module
        elif isinstance(module, BatchNorm) and module.running_mean is not None:
            device = module.running_mean.device
            module.running_mean = torch.arange(len(module.running_mean), dtype=torch.float32, device=device)
            norms[name] = module
    for root, channels in doomed.items():
        _group_at(graph, reference.get_submodule(root), channels).prune()
    left = {name: layer.weight.detach().flatten(1)[:, 0].long() for name, layer in layers.items()}
    return left | {name: norm.running_mean.long() for name, norm in norms.items() if norm.running_mean is not None}


def _scores(graph: Any, root: nn.Module, importance: Importance) -> Tensor:
    group = _group_at(graph, root, None)
    scores: Tensor | None = _measure(importance)(group)
    if scores is None:  # batch-norm scales asked of a group without batch norm
        scores = _measure("l1")(group)
    assert scores is not None
    return scores


def _graph(model: nn.Module, example: Tensor) -> Any:
    # torch-pruning finds dependencies by the autograd graph: without gradients it would see one group only.
    with torch.enable_grad():
        frozen = [parameter.requires_grad_() for parameter in model.parameters() if not parameter.requires_grad]
        graph = tp.DependencyGraph().build_dependency(model.eval(), example_inputs=example, verbose=False)
        for parameter in frozen:
            parameter.requires_grad_(False)
    return graph


def _group_at(graph: Any, root: nn.Module, channels: Sequence[int] | None) -> Any:
    cut = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
    if channels is None:
        channels = range(root.out_features if isinstance(root, nn.Linear) else root.out_channels)  # type: ignore[arg-type]
    return graph.get_pruning_group(root, cut, idxs=list(channels))


def _members(group: Any, names: dict[nn.Module, str], side: Callable[[Any], bool]) -> tuple[str, ...]:
    found = {
        names[dependency.target.module]: None
        for dependency, _ in group
        if side(dependency.handler) and isinstance(dependency.target.module, nn.Conv2d | nn.Linear)
    }
    places = {name: place for place, name in enumerate(names.values())}
    return tuple(sorted(found, key=lambda name: places[name]))


def _measure(importance: Importance) -> Any:
    match importance:
        case "l1":
            return tp.importance.GroupMagnitudeImportance(p=1)
        case "l2":
            return tp.importance.GroupMagnitudeImportance(p=2)
        case "bn_scale":
            return tp.importance.BNScaleImportance()
        case "taylor":
            return tp.importance.GroupTaylorImportance()


def _silence(group: Any, graph: Any) -> None:
    with torch.no_grad():
        for dependency, channels in group:
            module = dependency.target.module
            writes = graph.is_out_channel_pruning_fn(dependency.handler)
            if not writes or not isinstance(module, nn.Module):
                continue
            for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
                if parameter is not None:
                    parameter[channels] = 0


def _compare(pruned: nn.Module, reference: nn.Module, example: Tensor) -> None:
    was_training = pruned.training
    with torch.no_grad():
        try:
            got = pruned.eval()(example)
        except RuntimeError as error:
            raise SurgeryError(f"the pruned network does not run: {str(error).splitlines()[0]}") from error
        expected = reference.eval()(example)
    pruned.train(was_training)
    if got.shape != expected.shape:
        raise SurgeryError("its channels are the outputs of the network")
    gap = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not gap <= TOLERANCE:
        raise SurgeryError(
            f"the pruned network differs from the one with those channels zeroed by {gap:.1%} of its largest output"
        )


def _why_not(model: nn.Module, group: Group, example: Tensor) -> str | None:
    if group.channels < 2:
        return "has a single channel"
    widths = {name: _width(model, name) for name in group.writers}
    if set(widths.values()) != {group.channels}:
        return f"its group joins layers of different widths ({', '.join(f'{name}: {width}' for name, width in widths.items())})"
    # Channels at random, so that those counted in another order somewhere in the network are found out.
    third = torch.randperm(group.channels, generator=torch.Generator().manual_seed(0))[: max(1, group.channels // 3)]
    try:
        _cut(deepcopy(model), {group.name: third.tolist()}, example)
    except SurgeryError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # whatever the library raises on this graph: the group is left alone
        return f"torch-pruning: {type(error).__name__}: {error}"
    return None


def _width(model: nn.Module, name: str) -> int:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
