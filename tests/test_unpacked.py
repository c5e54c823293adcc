"""What is made of torch's attention and transformer layers computes what they compute, for every way to call them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from autocompress import nested
from autocompress.baseline import check_parity
from autocompress.compress import compress
from autocompress.measure import Here
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.runtimes import runtime_of
from autocompress.target import Target
from autocompress.unpacked import Attention, unpacked

N, QUERIES, KEYS, WIDTH, HEADS = 3, 5, 7, 16, 4
PADDING = torch.arange(KEYS)[None] >= torch.tensor([[7], [4], [2]])
SQUARE = torch.ones(QUERIES, KEYS).triu(1).bool()
MASKS: list[dict[str, Any]] = [
    {},
    {"key_padding_mask": PADDING},
    {"attn_mask": SQUARE},
    {"attn_mask": torch.randn(QUERIES, KEYS, generator=torch.Generator().manual_seed(1)), "key_padding_mask": PADDING},
    {"attn_mask": SQUARE.expand(N * HEADS, -1, -1), "average_attn_weights": False},
    {"need_weights": False, "key_padding_mask": PADDING},
]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("settings", [{"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 10, "batch_first": True}])
def test_attention(settings: dict[str, Any], masks: dict[str, Any]) -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(WIDTH, HEADS, **settings).eval()
    inputs = (
        draw(N, QUERIES, WIDTH),
        draw(N, KEYS, settings.get("kdim", WIDTH)),
        draw(N, KEYS, settings.get("vdim", WIDTH)) + 1,
    )
    if not settings.get("batch_first"):
        inputs = tuple(part.transpose(0, 1) for part in inputs)  # type: ignore[assignment]
    expected, weights = packed(*inputs, **masks)
    got, ours = Attention(packed)(*inputs, **masks)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    if weights is None:
        assert ours is None
    else:
        torch.testing.assert_close(ours, weights, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_whole_encoder(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, activation="gelu", batch_first=True, norm_first=norm_first)
    packed = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False).eval()
    inputs, padding = draw(N, KEYS, WIDTH), PADDING
    causal = nn.Transformer.generate_square_subsequent_mask(KEYS)
    expected = [packed(inputs), packed(inputs, mask=causal, is_causal=True), packed(inputs, src_key_padding_mask=padding)]
    apart = unpacked(packed)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in apart.modules())
    assert not apart.training
    got = [apart(inputs), apart(inputs, mask=causal, is_causal=True), apart(inputs, src_key_padding_mask=padding)]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_and_training_are_the_same() -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dropout=0.5)
    packed.out_proj.weight.requires_grad_(False)
    apart = Attention(packed)
    assert not apart.output.weight.requires_grad
    inputs = draw(N, KEYS, WIDTH)
    losses = [layer.eval()(inputs, inputs, inputs)[0].square().mean() for layer in (packed, apart)]
    for loss in losses:
        loss.backward()
    assert packed.in_proj_weight.grad is not None
    parts = [layer.weight.grad for layer in (apart.query, apart.key, apart.value)]
    torch.testing.assert_close(torch.cat([part for part in parts if part is not None]), packed.in_proj_weight.grad)
    apart.train()
    torch.manual_seed(1)
    assert not torch.equal(apart(inputs, inputs, inputs)[0], apart(inputs, inputs, inputs)[0])  # dropout


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_what_cannot_be_taken_apart_stays_and_is_listed(settings: dict[str, Any]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Linear(6, WIDTH), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings)
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            outputs: Tensor = self.head(self.attention(x, x, x)[0].mean(1))
            return outputs

    model = unpacked(Net()).eval()
    layers = probe(model, draw(N, KEYS, 6))
    assert isinstance(model.get_submodule("attention"), nn.MultiheadAttention)
    assert layers.left_alone["attention"] == "a MultiheadAttention is neither pruned nor quantised"
    assert [layer.name for layer in layers] == ["embed", "head"]


def test_heads_go_as_a_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(WIDTH, HEADS), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            x, other = x.transpose(0, 1), other.transpose(0, 1)
            outputs: Tensor = self.head(self.attention(x, other, other)[0].mean(0))
            return outputs

    torch.manual_seed(0)
    model = unpacked(Net()).eval()
    inputs = draw(32, QUERIES, WIDTH), draw(32, KEYS, WIDTH)
    layers = probe(model, nested.take(inputs, slice(4)))
    group = layers.group("attention.query")
    assert (group.channels, group.unit) == (WIDTH, WIDTH // HEADS)
    assert set(group.writers) == {"attention.query", "attention.key", "attention.value"}
    policy = Policy(
        channel_sparsity={"attention.query": 0.4},
        layers={layer.name: LayerPolicy(weight_bits=7, activation_bits=8) for layer in layers},
    )
    student = compress(model, policy, inputs, groups=layers.groups)
    assert student.get_parameter("attention.query.layer.weight").shape == (8, WIDTH)  # two heads of four
    with torch.no_grad():
        assert nested.call(student, inputs).shape == (32, 2)


def test_the_network_itself_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True), nn.BatchNorm1d(KEYS))
    apart = unpacked(network)
    assert isinstance(network.get_submodule("0.self_attn"), nn.MultiheadAttention)
    assert isinstance(apart.get_submodule("0.self_attn"), Attention)
    mine = {id(part) for part in (*network.modules(), *network.parameters(), *network.buffers())}
    assert mine.isdisjoint(id(part) for part in (*apart.modules(), *apart.parameters(), *apart.buffers()))


class Computed(nn.Module):
    """Two layers whose weights are computed from others in the way `make` sees to."""

    def __init__(self, make: Callable[[nn.Module], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)
        for layer in (self.conv, self.head):
            make(layer)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.relu(self.conv(images)).mean((2, 3)))
        return outputs


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        partial(prune.l1_unstructured, name="weight", amount=0.5),
    ],
)
@pytest.mark.parametrize("target", [Target(), Target(runtime="torch")], ids=lambda target: target.runtime)
def test_computed_weights_become_plain_ones(make: Callable[[nn.Module], object], target: Target) -> None:
    network, images = Computed(make), draw(16, 1, 8, 8)
    network(images).sum().backward()  # as after training
    apart = unpacked(network).eval()
    assert {name for name, _ in apart.named_parameters()} == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert "conv.weight" not in dict(network.named_parameters())
    expected = network.eval()(images)
    torch.testing.assert_close(apart(images), expected)
    again = unpacked(Computed(make)).eval()
    again.load_state_dict(apart.state_dict())
    torch.testing.assert_close(again(images), expected)
    layers = dict.fromkeys(("conv", "head"), LayerPolicy(weight_bits=4))
    for student in (apart, compress(apart, Policy(layers=layers), images)):
        check_parity(student, runtime_of(target).export(student, images[:8]), images[:8], Here(target))
