"""Random small networks out of the blocks that networks are made of: what is said of them holds, down to the exported file."""

import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress import compress
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.runtimes import runtime_of
from autocompress.student import StudentLayer, channel_axis
from autocompress.target import Target
from tests.models.zoo import Concat, Residual, conv

TARGET = Target()
BLOCKS = ("conv", "depthwise", "grouped", "residual", "bottleneck", "concat", "groupnorm", "gate", "up", "pool", "layernorm")


class Gate(nn.Module):
    """Channels weighed by what the whole picture says, as squeeze-and-excitation does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return gated


class LayerNorm2d(nn.LayerNorm):
    """A norm over the channels of each pixel."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that torch gives it
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def block(kind: str, inputs: int, outputs: int) -> tuple[nn.Module, int]:
    """The block and its channels."""
    match kind:
        case "depthwise":
            return nn.Sequential(conv(inputs, inputs, groups=inputs), conv(inputs, outputs, 1)), outputs
        case "grouped":
            return nn.Sequential(conv(inputs, 8, 1), conv(8, 8, groups=4), conv(8, outputs, 1)), outputs
        case "residual":
            return Residual(nn.Sequential(conv(inputs, outputs), conv(outputs, inputs, act=None)), act=nn.ReLU), inputs
        case "bottleneck":
            return Residual(conv(inputs, outputs, act=None), conv(inputs, outputs, 1, act=None), nn.ReLU), outputs
        case "concat":
            return Concat(conv(inputs, outputs, 1), conv(inputs, 4)), outputs + 4
        case "groupnorm":
            return conv(inputs, 12, norm=lambda channels: nn.GroupNorm(3, channels)), 12
        case "gate":
            return Gate(inputs), inputs
        case "up":
            return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2), nn.ReLU(), nn.MaxPool2d(2)), outputs
        case "pool":
            return nn.AvgPool2d(3, stride=1, padding=1), inputs
        case "layernorm":
            return LayerNorm2d(inputs), inputs
    return conv(inputs, outputs), outputs


def network(kinds: list[tuple[str, int]], flat: bool) -> nn.Module:
    channels, parts = 3, []
    for kind, outputs in [("conv", 8), *kinds]:
        part, channels = block(kind, channels, outputs)
        parts.append(part)
    ending = [nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4 * channels, 5)]
    averaged = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]
    return nn.Sequential(*parts, *(ending if flat else averaged))


choices = st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from((8, 12, 16))), min_size=1, max_size=5)


# Exports take seconds: a network that fails is small already.
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(choices, st.booleans(), st.sampled_from((0.3, 0.5, 0.7)))
@example([("up", 16), ("concat", 8), ("layernorm", 8), ("grouped", 16)], True, 0.5)
@example([("groupnorm", 8), ("gate", 8), ("depthwise", 16), ("residual", 8)], False, 0.7)
def test_a_network_of_any_blocks(kinds: list[tuple[str, int]], flat: bool, share: float) -> None:
    torch.manual_seed(0)
    model, inputs = network(kinds, flat), torch.randn(32, 3, 8, 8) + 2 * torch.randn(32, 3, 1, 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # its statistics become those of the one batch
    model(inputs)
    layers = probe(model.eval(), inputs[:4])
    shares, integers = {group.name: share for group in layers.groups}, {}
    for place, found in enumerate(layers):
        integers[found.name] = LayerPolicy(weight_bits=2 + place % 7, activation_bits=8 if place % 3 else None)
    floats = {name: LayerPolicy(weight_bits=how.weight_bits) for name, how in integers.items()}
    policy = Policy(channel_sparsity=shares, layers=integers).canonical(layers, TARGET.menu)
    student = compress(model, policy, inputs, groups=layers.groups)
    for name, (inputs_left, outputs_left) in policy.widths(layers, TARGET.menu).items():
        layer = student.get_submodule(name)
        layer = layer.layer if isinstance(layer, StudentLayer) else layer
        assert isinstance(layer.weight, Tensor)
        shape = layer.weight.movedim(channel_axis(layer), 0).shape[:2]
        assert shape == (outputs_left, inputs_left), name
    assert len(file_of(student, inputs)) < len(file_of(model, inputs))
    # Integer kernels add the bias in whole steps of the product of two scales, which are wide where a layer has two bits and
    # few inputs; without integers nothing is rounded anew.
    assert difference(student, inputs) < 0.1
    assert (
        difference(compress(model, Policy(channel_sparsity=shares, layers=floats), inputs, groups=layers.groups), inputs) < 1e-4
    )


def file_of(model: nn.Module, inputs: Tensor) -> bytes:
    return runtime_of(TARGET).export(model, inputs[:4])


def difference(student: nn.Module, inputs: Tensor) -> float:
    """Between the student and its file, as a share of how much outputs differ: some networks give nearly the same for all."""
    with torch.no_grad():
        expected = student(inputs)
    got = torch.tensor(runtime_of(TARGET).load(file_of(student, inputs), TARGET)(inputs.numpy()))
    spread = float((expected - expected.mean(0)).norm()) + 0.02 * float(expected.norm())
    return float((got - expected).norm()) / spread
