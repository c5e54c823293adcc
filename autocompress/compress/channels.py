"""Structured pruning: which channels can be cut together, and cutting them for good (DepGraph: Fang et al., 2023)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from autocompress import nested
from autocompress.errors import SurgeryError
from autocompress.graph import BatchNorm
from autocompress.layer import Group
from autocompress.nested import Nested
from autocompress.policy import Importance
from autocompress.student import channel_axis, per_channel

# The largest difference, as a share of the largest output, that float rounding may make between a pruned network and
# the same network with the removed channels zeroed.
TOLERANCE = 1e-3

# Layers whose channels can be cut.
_READS = (nn.modules.conv._ConvNd, nn.Linear)
_CUT = (*_READS, nn.Embedding)
_ARE_OUTPUTS = "its channels are the outputs of the network"


def find_groups(model: nn.Module, example: Nested) -> tuple[list[Group], dict[str, str]]:
    """The channel groups of `model` that can be cut, and the layers whose channels cannot, with the reason.

    Every group is tried: a third of its channels is cut, and the outputs compared with the same network in which those
    channels are zero. Where single channels will not do, blocks of them are tried. `example` is a batch of shape (n, ...).
    """
    names = {module: name for name, module in model.named_modules()}
    try:
        graph = _graph(model, example)
    except Exception as error:  # noqa: BLE001  # whatever the library raises: nothing can be cut
        return [], {name: _library_says(error) for module, name in names.items() if isinstance(module, _CUT)}
    found: list[Group] = []
    refused: dict[str, str] = {}
    grouped: set[str] = set()
    for module in [module for module in graph.module2node if isinstance(module, _CUT)]:
        if names[module] in grouped:
            continue
        try:
            group = _group_at(graph, module, None)
        except Exception as error:  # noqa: BLE001  # whatever the library raises on this graph: the layer is left alone
            refused[names[module]] = _library_says(error)
            continue
        writers = _members(group, names, graph.is_out_channel_pruning_fn)
        readers = _readers(group, names, graph.is_in_channel_pruning_fn)
        grouped.update(writers)
        channels = len(group[0].idxs)
        extra = _extra_params(group) // channels
        found.append(Group(name=writers[0], channels=channels, writers=writers, readers=readers, extra_params=extra))
    order = {name: place for place, name in enumerate(names.values())}
    usable: list[Group] = []
    for candidate in sorted(found, key=lambda group: order[group.name]):
        outcome = _usable(model, candidate, example)
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
    with _all_trained(model):
        if importance == "taylor":
            if gradients is None:
                raise ValueError("importance 'taylor' needs gradients")
            gradients(model)
            for parameter in model.parameters():
                if parameter.grad is None:  # the loss does not reach it
                    parameter.grad = torch.zeros_like(parameter)
        graph = _graph(model, example)
        known = {group.name: group for group in groups}
        doomed = {}
        for root, kept in keep.items():
            unit = known[root].unit if root in known else 1
            scores = _scores(graph, model.get_submodule(root), importance).view(-1, unit).mean(1)
            blocks = scores.argsort()[: len(scores) - max(1, round(kept / unit))]
            doomed[root] = _channels_of(blocks, unit)
        left = _cut(model, doomed, example, {root: known[root].counts for root in keep if root in known})
    model.zero_grad(set_to_none=True)
    return left


@contextmanager
def _all_trained(model: nn.Module) -> Iterator[None]:
    """Lets gradients flow to frozen parameters; afterwards they, or those that took their place, are frozen again."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for name in frozen:
        model.get_parameter(name).requires_grad_()
    try:
        yield
    finally:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)


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
    masked, graph = _graph(reference, example), _graph(model, example)
    silenced: dict[nn.LayerNorm, set[int]] = {}
    for root, channels in doomed.items():
        group = _group_at(masked, reference.get_submodule(root), channels)
        _silence(group, masked)
        for dependency, those in group:
            if isinstance(norm := dependency.target.module, nn.LayerNorm):
                silenced.setdefault(norm, set()).update(those)
    for norm, those in silenced.items():
        _norm_others(norm, those)
    for root, channels in doomed.items():
        _group_at(graph, model.get_submodule(root), channels).prune()
    _tie(tied)
    for group_norm, channels_before in norms.items():
        group_norm.num_groups = group_norm.num_groups * group_norm.num_channels // channels_before
    for root, attributes in counts.items():
        for attribute in attributes:
            owner, _, name = attribute.rpartition(".")
            module = model.get_submodule(owner)
            setattr(module, name, getattr(module, name) * _width(model, root) // before[root])
    _compare(model, reference, example)
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


def _graph(model: nn.Module, example: Nested) -> Any:
    # torch-pruning finds dependencies by the autograd graph: without gradients it would see one group only.
    with torch.enable_grad(), _all_trained(model):
        return _Graph().build_dependency(model.eval(), example_inputs=example, forward_fn=_float_outputs, verbose=False)


def _float_outputs(model: nn.Module, example: Nested) -> tuple[Tensor, ...]:
    return tuple(part for part in nested.arrays(nested.call(model, example)) if part.is_floating_point())


class _BlockwiseConvPruner(tp.pruner.function.DepthwiseConvPruner):  # type: ignore[misc]  # the library has no types
    """Cuts inputs and outputs of a grouped convolution alike: whole groups of it."""

    def prune_out_channels(self, layer: nn.Conv2d, idxs: Sequence[int]) -> nn.Conv2d:
        before, groups = layer.out_channels, layer.groups
        super().prune_out_channels(layer, idxs)
        layer.groups = max(1, groups * layer.out_channels // before)
        return layer

    prune_in_channels = prune_out_channels


class _Graph(tp.DependencyGraph):  # type: ignore[misc]  # the library has no types
    """The library's graph, with a way to cut grouped convolutions, and layer norms in order."""

    def __init__(self) -> None:
        super().__init__()
        self._blockwise, self._layer_norm = _BlockwiseConvPruner(), _LayerNormPruner()
        for known in (self._in_channel_pruning_fn, self._out_channel_pruning_fn):
            known |= {self._blockwise.prune_out_channels, self._layer_norm.prune_out_channels}

    def get_pruner_of_module(self, module: nn.Module) -> Any:
        if isinstance(module, nn.LayerNorm):
            return self._layer_norm
        return self._blockwise if _is_blockwise(module) else super().get_pruner_of_module(module)


class _LayerNormPruner(tp.pruner.function.LayernormPruner):  # type: ignore[misc]  # the library has no types
    """Keeps the channels in their order: the library's own takes that of a set, in which 9 comes before 3."""

    def prune_out_channels(self, layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.LayerNorm:
        *outer, width = layer.normalized_shape
        gone = set(idxs)
        kept = torch.tensor([channel for channel in range(width) if channel not in gone])
        for name in ("weight", "bias"):
            if (parameter := getattr(layer, name)) is not None:
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


def _group_at(graph: Any, root: nn.Module, channels: Sequence[int] | None) -> Any:
    cut = graph.get_pruner_of_module(root).prune_out_channels
    if channels is None:
        channels = range(graph.get_out_channels(root))
    return graph.get_pruning_group(root, cut, idxs=list(channels))


def _members(group: Any, names: dict[nn.Module, str], side: Callable[[Any], bool]) -> tuple[str, ...]:
    found = {
        names[dependency.target.module]: None
        for dependency, _ in group
        if side(dependency.handler) and isinstance(dependency.target.module, _CUT)
    }
    places = {name: place for place, name in enumerate(names.values())}
    return tuple(sorted(found, key=lambda name: places[name]))


def _readers(group: Any, names: dict[nn.Module, str], side: Callable[[Any], bool]) -> dict[str, int]:
    """Those who read the channels of the group, and how many inputs each channel is to them. An embedding reads words."""
    places: Counter[str] = Counter()
    for dependency, indices in group:
        if side(dependency.handler):
            places[names.get(dependency.target.module, "")] += len(indices)
    members = [name for module, name in names.items() if isinstance(module, _READS) and name in places]
    in_groups = {name for module, name in names.items() if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1}
    return {name: 0 if name in in_groups else places[name] // len(group[0].idxs) for name in members}


def _extra_params(group: Any) -> int:
    """The numbers that go with the group's channels outside of its layers, and of batch norms, which are folded into those."""
    count = 0
    for dependency, indices in group:
        member = dependency.target.module
        if isinstance(member, nn.LayerNorm | nn.GroupNorm):
            count += sum(len(indices) for _ in member.parameters())
        elif isinstance(member, Parameter):
            count += member.numel() // member.shape[-1] * len(indices)
    return count


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
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if weight is not None:
                weight.movedim(channel_axis(module), 0)[channels] = 0
            if bias is not None:
                bias[channels] = 0


class _NormOfThoseLeft(TorchFunctionMode):
    """Within it a layer norm goes over some of its channels alone, and gives zeros for the others."""

    def __init__(self, left: Tensor) -> None:
        super().__init__()
        self._left = left

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not nn.functional.layer_norm:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | (kwargs or {})
        inputs = given.pop("input")
        scales = {name: None if given.get(name) is None else given[name][self._left] for name in ("weight", "bias")}
        outputs = torch.zeros_like(inputs)
        outputs[..., self._left] = func(inputs[..., self._left], **(given | scales | {"normalized_shape": [len(self._left)]}))
        return outputs


def _norm_others(norm: nn.LayerNorm, doomed: Collection[int]) -> None:
    """Has `norm` go over its channels as if the `doomed` ones were not there: those give zeros."""
    if len(norm.normalized_shape) > 1:
        raise SurgeryError("a LayerNorm goes over its channels and over their places at once")
    left = torch.tensor([channel for channel in range(norm.normalized_shape[0]) if channel not in doomed])
    whole = norm.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with _NormOfThoseLeft(left):
            outputs: Tensor = whole(*args, **kwargs)
        return outputs

    norm.forward = forward  # type: ignore[method-assign]


def _tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The modules that share a parameter, of each such one, and what they call it."""
    uses = defaultdict[Parameter, list[tuple[nn.Module, str]]](list)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                uses[parameter].append((module, name))
    return [places for places in uses.values() if len(places) > 1]


def _tie(tied: Sequence[Sequence[tuple[nn.Module, str]]]) -> None:
    """Has them share it again, where all of them lost the same."""
    for (first, own), *others in tied:
        kept = getattr(first, own)
        for module, name in others:
            if getattr(module, name).shape == kept.shape:
                setattr(module, name, kept)


def _compare(pruned: nn.Module, reference: nn.Module, example: Nested) -> None:
    was_training = pruned.training
    with torch.no_grad():
        try:
            got = nested.call(pruned.eval(), example)
        except RuntimeError as error:
            raise SurgeryError(f"the pruned network does not run: {str(error).splitlines()[0]}") from error
        expected = nested.call(reference.eval(), example)
    pruned.train(was_training)
    if nested.shapes(got) != nested.shapes(expected):
        raise SurgeryError(_ARE_OUTPUTS)
    gap = max(_gap(*pair) for pair in zip(nested.arrays(got), nested.arrays(expected), strict=True))
    if not gap <= TOLERANCE:
        raise SurgeryError(
            f"the pruned network differs from the one with those channels zeroed by {gap:.1%} of its largest output"
        )


def _gap(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def _usable(model: nn.Module, group: Group, example: Nested) -> Group | str:
    """The group, in blocks where it has to be, or why it cannot be cut."""
    if group.channels < 2:
        return "has a single channel"
    widths = {name: _width(model, name) for name in group.writers}
    if set(widths.values()) != {group.channels}:
        return f"its group joins layers of different widths ({', '.join(f'{name}: {width}' for name, width in widths.items())})"
    reason = _why_not(model, group, example)
    if reason is None or reason == _ARE_OUTPUTS:
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
    try:
        _cut(deepcopy(model), {group.name: doomed}, example, {group.name: group.counts})
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
