"""A model and a policy in, a smaller model out."""

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy

from torch import Tensor, nn

from autocompress import nested
from autocompress.compress.activations import quantize_activations
from autocompress.compress.branches import leave_out
from autocompress.compress.calibrate import observe_activations, reestimate_batch_norm
from autocompress.compress.channels import prune
from autocompress.compress.repair import look, repair_weights
from autocompress.compress.weights import compress_weights
from autocompress.errors import SurgeryError, unknown_name
from autocompress.layer import Group
from autocompress.nested import Nested
from autocompress.policy import Importance, Policy
from autocompress.student import channel_axis

# Enough to compare a pruned network with its masked reference.
_EXAMPLES = 8


def compress(
    model: nn.Module,
    policy: Policy,
    calibration: Nested,
    gradients: Callable[[nn.Module], None] | None = None,
    groups: Iterable[Group] = (),
) -> nn.Module:
    """A student: a copy of `model` with channels removed, weights masked and rounded, and activations rounded by `policy`.

    `calibration` holds training inputs (n, ...), by which the weights that are left are refitted when `policy` wants them
    repaired, and batch-norm statistics and activation ranges are set. `gradients` leaves the gradient of the training loss
    in a model's parameters; only the importance "taylor" asks for it. `groups` are those that were found by `probe`: in some
    of them channels go in blocks, some are those of a branch that can be left out. The student is in evaluation mode and can
    be fine-tuned as it is; the empty policy gives a plain copy. Raises `UnknownNameError` for a layer the model has not,
    `SurgeryError` when the result would not be what the policy says.
    """
    student = deepcopy(model).eval()
    names = {name for name, _ in student.named_modules()}
    for name in (*policy.channel_sparsity, *policy.layers):
        if name not in names:
            raise unknown_name("layer", name, names - {""})
    groups, few = tuple(groups), nested.take(calibration, slice(_EXAMPLES))
    gone, shares = policy.left_out(groups), policy.cuts(groups)
    layers = {name: layer for name, layer in policy.layers.items() if name not in gone}
    student, kept = cut(student, shares, policy.importance, few, gradients, groups)
    compress_weights(student, layers)
    changed = bool(shares or layers)
    repaired = repair_weights(student, look(model, calibration), kept, calibration) if changed and policy.repair else []
    static = [name for name, layer in layers.items() if layer.activation_bits and layer.activation_range == "static"]
    if static:
        student = quantize_activations(student, static, calibration)
    if changed:
        reestimate_batch_norm(student, calibration, but=repaired)
        observe_activations(student, calibration)
    return student.eval()


def cut(
    model: nn.Module,
    shares: Mapping[str, float],
    importance: Importance,
    example: Nested,
    gradients: Callable[[nn.Module], None] | None = None,
    groups: Collection[Group] = (),
) -> tuple[nn.Module, dict[str, Tensor]]:
    """`model` without these shares of the channels of each group: cut in place, then as a graph where a branch is left out.

    Gives also the places of the channels that are left, as `prune` does. Raises `SurgeryError`.
    """
    keep = {root: _kept(model.get_submodule(root), share) for root, share in shares.items() if share < 1}
    left = prune(model, keep, importance, example, gradients, groups)
    without = [group for group in groups if shares.get(group.name) == 1]
    if unknown := [root for root, share in shares.items() if share == 1 and all(group.name != root for group in without)]:
        raise SurgeryError(f"{unknown[0]!r} is no channel group of the network: its channels cannot all go")
    return leave_out(model, without, example) if without else model, left


def _kept(layer: nn.Module, share: float) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return round(weight.shape[channel_axis(layer)] * (1 - share))
