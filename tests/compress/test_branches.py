"""Residual branches: which can be left out, and that the network without them is the one in which they add nothing."""

import pytest
import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.compress import compress
from autocompress.errors import PolicyError, SurgeryError
from autocompress.layer import Layers
from autocompress.option import options
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import cost, probe
from autocompress.target import Target
from tests.models.zoo import ZOO, made

MENU = Target().menu
# In each network: the group of the branch, the layers that go with it, and the module that the branch ends with.
BRANCHES = {
    "resnet_basic": ("2.conv1", {"2.conv1", "2.conv2"}, "2.bn2"),
    "resnet_bottleneck": ("2.body.1.0", {"2.body.0.0", "2.body.1.0", "2.body.2.0"}, "2.body"),
    "mobilenet_v2": ("2.body.0.0", {"2.body.0.0", "2.body.1.0", "2.body.2.0"}, "2.body"),
    "bert": ("layers.0.mlp.0", {"layers.0.mlp.0", "layers.0.mlp.2"}, "layers.0.mlp"),
}


def subject(name: str) -> tuple[nn.Module, nested.Nested, Layers]:
    model, inputs = made(name), nested.each(lambda part: part, ZOO[name].inputs(64))
    return model, inputs, probe(model, nested.take(inputs, slice(8)))


def outputs(model: nn.Module, inputs: nested.Nested) -> list[Tensor]:
    with torch.no_grad():
        return list(nested.arrays(nested.call(model, inputs)))


@pytest.mark.parametrize("name", BRANCHES)
def test_without_a_branch_the_network_is_the_one_in_which_it_adds_nothing(name: str) -> None:
    model, inputs, layers = subject(name)
    group, members, end = BRANCHES[name]
    assert set(layers.group(group).branch) == members
    policy = Policy(channel_sparsity={group: 1.0}, repair=False)
    policy.check(layers, MENU)
    student = compress(model, policy, inputs, groups=layers.groups)
    model.get_submodule(end).register_forward_hook(lambda _module, _given, output: torch.zeros_like(output))
    for norm in (module for net in (student, model) for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.train()  # those of the student have been estimated anew
    for got, expected in zip(outputs(student, inputs), outputs(model, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    left = {module for module, _ in student.named_modules()}
    assert not left & members
    assert cost(student, nested.take(inputs, slice(8))).macs < sum(layer.macs for layer in layers)


def test_a_network_in_a_line_has_no_branch() -> None:
    for name in ("vgg", "densenet", "unet", "mlp"):
        _, _, layers = subject(name)
        assert not any(group.branch for group in layers.groups), name


def test_channels_that_the_network_needs_cannot_all_go() -> None:
    model, inputs, layers = subject("vgg")
    policy = Policy(channel_sparsity={layers.groups[0].name: 1.0})
    with pytest.raises(PolicyError, match=r"must be less than 1, given 1.0: the network needs some of its channels"):
        policy.check(layers, MENU)
    with pytest.raises(SurgeryError, match="the network needs some of the channels"):
        compress(model, policy, inputs, groups=layers.groups)
    with pytest.raises(SurgeryError, match="its channels cannot all go"):
        compress(model, policy, inputs)


def test_of_what_is_left_out_a_policy_says_nothing_else() -> None:
    _, _, layers = subject("resnet_bottleneck")
    everywhere = {layer.name: LayerPolicy(weight_bits=4) for layer in layers}
    shares = {"2.body.1.0": 1.0, "2.body.0.0": 0.5, "1.body.0.0": 0.5}
    policy = Policy(channel_sparsity=shares, layers=everywhere).canonical(layers, MENU)
    assert policy.channel_sparsity == {"2.body.1.0": 1.0, "1.body.0.0": 0.5}
    assert set(policy.layers) == set(everywhere) - set(layers.group("2.body.1.0").branch)
    assert set(policy.widths(layers, MENU)) == set(policy.layers)
    assert policy.canonical(layers, MENU) == policy
    assert "1 branch left out, w4," in policy.describe(layers)
    assert Policy(channel_sparsity={"2.body.1.0": 1.0}, importance="l2").canonical(layers, MENU).importance == "l1"


def test_a_group_that_others_write_too_is_cut_where_a_branch_is_gone() -> None:
    model, inputs, layers = subject("resnet_basic")
    branch = layers.group("2.conv1").branch
    stream = next(group for group in layers.groups if group.writers[0] in branch and not set(group.writers) <= set(branch))
    policy = Policy(channel_sparsity={"2.conv1": 1.0, stream.name: 0.5}).canonical(layers, MENU)
    assert policy.channel_sparsity.keys() == {"2.conv1", stream.name}
    student = compress(model, policy, inputs, groups=layers.groups)
    widths = policy.widths(layers, MENU)
    for name in set(stream.writers) - set(branch):
        weight = student.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert len(weight) == widths[name][1] < stream.channels


def test_it_is_an_option_of_each_branch() -> None:
    _, _, layers = subject("resnet_basic")
    whole = {option.name for option in options(layers, MENU) if option.what == "channel_sparsity" and option.value == 1}
    assert whole == {group.name for group in layers.groups if group.branch} != set()
