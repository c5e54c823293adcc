"""Structured pruning: which channels can be cut together, and cutting them for good."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import Parameter

from autocompress.compress.dependencies import CUT, all_trained, dependencies, described, group_at, stranger_in
from autocompress.compress.masked import ARE_OUTPUTS, compare, mask
from autocompress.errors import SurgeryError
from autocompress.graph import BatchNorm
from autocompress.layer import Group
from autocompress.nested import Nested
from autocompress.policy import Importance
from autocompress.student import per_channel


def find_groups(model: nn.Module, example: Nested) -> tuple[list[Group], dict[str, str]]:
    """The channel groups of `model` that can be cut, and the layers whose channels cannot, with the reason.

    Every group is tried: a third of its channels is cut, and the outputs compared with the same network in which those
    channels are zero. Where single channels will not do, blocks of them are tried. `example` is a batch of shape (n, ...).
    """
    names = {module: name for name, module in model.named_modules()}
    try:
        graph = dependencies(model, example)
    except Exception as error:  # noqa: BLE001  # whatever the library raises: nothing can be cut
        return [], {name: _library_says(error) for module, name in names.items() if isinstance(module, CUT)}
    found: list[tuple[Group, Any]] = []
    refused: dict[str, str] = {}
    grouped: set[str] = set()
    for module in [module for module in graph.module2node if isinstance(module, CUT)]:
        if names[module] in grouped:
            continue
        try:
            group = group_at(graph, module, None)
        except Exception as error:  # noqa: BLE001  # whatever the library raises on this graph: the layer is left alone
            refused[names[module]] = _library_says(error)
            continue
        candidate = described(group, graph, names)
        grouped.update(candidate.writers)
        if (stranger := stranger_in(group, names)) is not None:
            refused |= dict.fromkeys(candidate.writers, f"its channels are also those of {stranger}, which is left alone")
        else:
            found.append((candidate, group))
    order = {name: place for place, name in enumerate(names.values())}
    usable: list[Group] = []
    for candidate, group in sorted(found, key=lambda pair: order[pair[0].name]):
        outcome = _usable(model, candidate, group, example)
        taken = {count: group.name for group in usable for count in group.counts}
        if isinstance(outcome, Group) and (shared := next((count for count in outcome.counts if count in taken), None)):
            outcome = f"{shared} counts the channels of {taken[shared]} too"
        if isinstance(outcome, Group):
            usable.append(outcome)
        else:
            refused |= dict.fromkeys(candidate.writers, outcome)
    return usable, refused


def prune(
    model: nn.Module,
    keep: dict[str, int],
    importance: Importance,
    example: Nested,
    gradients: Callable[[nn.Module], None] | None = None,
    groups: Iterable[Group] = (),
) -> dict[str, Tensor]:
    """Cuts channels of `model` in place until each group named in `keep` has that many, least important first.

    Those of the `groups` in which channels go in blocks keep as many blocks as come next to it, and at least one.
    `importance` "taylor" needs `gradients`, which leaves the gradient of the training loss in the parameters. Gives the
    places of the channels that are left of each layer and batch norm, among those it had. Raises `SurgeryError` when the
    result differs from the network with the removed channels zeroed.
    """
    if not keep:
        return {}
    with all_trained(model):
        if importance == "taylor":
            if gradients is None:
                raise ValueError("importance 'taylor' needs gradients")
            gradients(model)
            for parameter in model.parameters():
                if parameter.grad is None:  # the loss does not reach it
                    parameter.grad = torch.zeros_like(parameter)
        graph = dependencies(model, example)
        known = {group.name: group for group in groups}
        doomed = {}
        for root, kept in keep.items():
            unit = known[root].unit if root in known else 1
            scores = _scores(group_at(graph, model.get_submodule(root), None), importance).view(-1, unit).mean(1)
            blocks = scores.argsort()[: len(scores) - max(1, round(kept / unit))]
            doomed[root] = _channels_of(blocks, unit)
        left = _cut(model, doomed, example, {root: known[root].counts for root in keep if root in known})
    model.zero_grad(set_to_none=True)
    return left


def _channels_of(blocks: Tensor, unit: int) -> list[int]:
    """The channels of these blocks of `unit` neighbours, in order."""
    channels: list[int] = (blocks.sort().values[:, None] * unit + torch.arange(unit, device=blocks.device)).flatten().tolist()
    return channels


def _cut(
    model: nn.Module, doomed: dict[str, list[int]], example: Nested, counts: Mapping[str, Sequence[str]] = {}
) -> dict[str, Tensor]:
    """Removes those channels of each group root; raises `SurgeryError` when that is not the same as zeroing them.

    The attributes `counts` of each root shrink with it. Gives the channels that are left of each layer and batch norm.
    """
    before = {root: _width(model, root) for root in doomed}
    norms = {norm: norm.num_channels for norm in model.modules() if isinstance(norm, nn.GroupNorm)}
    tied = _tied(model)
    reference = deepcopy(model).eval()
    _untie(reference)  # what one layer gives there is not what another reads
    masked, graph = dependencies(reference, example), dependencies(model, example)
    mask(reference, masked, doomed)
    for root, channels in doomed.items():
        group_at(graph, model.get_submodule(root), channels).prune()
    _tie(model, tied)
    for group_norm, channels_before in norms.items():
        group_norm.num_groups = max(1, group_norm.num_groups * group_norm.num_channels // channels_before)
    for root, attributes in counts.items():
        for attribute in attributes:
            owner, _, name = attribute.rpartition(".")
            module = model.get_submodule(owner)
            setattr(module, name, getattr(module, name) * _width(model, root) // before[root])
    compare(model, reference, example)
    return _left(masked, reference, doomed)


def _left(graph: Any, reference: nn.Module, doomed: dict[str, list[int]]) -> dict[str, Tensor]:
    """The channels that are left of each layer and batch norm: `reference` is cut with its channels numbered."""
    layers, norms = {}, {}
    for name, module in reference.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            # In single precision: half of it cannot tell 599 from 600.
            numbers = torch.arange(len(module.weight), dtype=torch.float32, device=module.weight.device)
            module.weight.data = per_channel(numbers, module.weight).repeat(1, *module.weight.shape[1:])
            layers[name] = module
        elif isinstance(module, BatchNorm) and module.running_mean is not None:
            device = module.running_mean.device
            module.running_mean = torch.arange(len(module.running_mean), dtype=torch.float32, device=device)
            norms[name] = module
    for root, channels in doomed.items():
        group_at(graph, reference.get_submodule(root), channels).prune()
    left = {name: layer.weight.detach().flatten(1)[:, 0].long() for name, layer in layers.items()}
    return left | {name: norm.running_mean.long() for name, norm in norms.items() if norm.running_mean is not None}


def _scores(group: Any, importance: Importance) -> Tensor:
    """How much each channel of a group of the library matters. Raises `SurgeryError` where nothing tells."""
    scores: Tensor | None = _measure(importance)(group)
    if scores is None:  # batch-norm scales asked of a group without batch norm
        scores = _measure("l1")(group)
    if scores is None:
        raise SurgeryError("no convolution and no linear layer has its channels, to tell which of them matter")
    return scores


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


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names = defaultdict[Parameter, list[str]](list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return [of_one for of_one in names.values() if len(of_one) > 1]


def _tie(model: nn.Module, tied: Sequence[Sequence[str]]) -> None:
    """Has layers share it again. Raises `SurgeryError` where one of them has lost others of its numbers than another."""
    for first, *others in tied:
        kept = model.get_parameter(first)
        for name in others:
            if not torch.equal(model.get_parameter(name), kept):
                raise SurgeryError(f"{name} is {first} too, and would no longer be")
            _set_parameter(model, name, kept)


def _untie(model: nn.Module) -> None:
    for _, *others in _tied(model):
        for name in others:
            _set_parameter(model, name, deepcopy(model.get_parameter(name)))


def _set_parameter(model: nn.Module, name: str, parameter: Parameter) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, parameter)


def _usable(model: nn.Module, group: Group, found: Any, example: Nested) -> Group | str:
    """The group, in blocks where it has to be, or why it cannot be cut; `found` is the library's own."""
    if group.channels < 2:
        return "has a single channel"
    widths = {name: _width(model, name) for name in group.writers}
    if set(widths.values()) != {group.channels}:
        return f"its group joins layers of different widths ({', '.join(f'{name}: {width}' for name, width in widths.items())})"
    if (unranked := _failure(lambda: _scores(found, "l1"))) is not None:
        return unranked
    reason = _why_not(model, group, example)
    if reason is None or reason == ARE_OUTPUTS:
        return reason or group
    for blocks in _in_blocks(model, group):
        if _why_not(model, blocks, example) is None:
            return blocks
    return reason


def _in_blocks(model: nn.Module, group: Group) -> Iterator[Group]:
    """The group in blocks of every size, the smallest first, without and with attributes that count them."""
    for unit in (unit for unit in range(2, group.channels // 2 + 1) if group.channels % unit == 0):
        blocks = group.model_copy(update={"unit": unit})
        yield blocks
        if counts := tuple(_counts(model, blocks)):
            yield blocks.model_copy(update={"counts": counts})


def _counts(model: nn.Module, group: Group) -> Iterator[str]:
    """Numbers of the blocks, or of the channels, among the attributes of the modules that hold the group's layers."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in (*group.writers, *group.readers))
    for owner in owners:
        for attribute, value in vars(model.get_submodule(owner)).items():
            if type(value) is int and value in (group.channels // group.unit, group.channels):
                yield f"{owner}.{attribute}" if owner else attribute


def _why_not(model: nn.Module, group: Group, example: Nested) -> str | None:
    # At random, so that channels counted in another order somewhere in the network are found out.
    blocks = torch.randperm(group.channels // group.unit, generator=torch.Generator().manual_seed(0))
    doomed = _channels_of(blocks[: max(1, len(blocks) // 3)], group.unit)
    return _failure(lambda: _cut(deepcopy(model), {group.name: doomed}, example, {group.name: group.counts}))


def _failure(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except SurgeryError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # whatever the library raises on this graph: the group is left alone
        return _library_says(error)
    return None


def _library_says(error: Exception) -> str:
    return f"torch-pruning cannot follow its channels ({type(error).__name__}: {error})"


def _width(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    assert isinstance(width, int)
    return width
