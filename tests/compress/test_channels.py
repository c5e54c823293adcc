"""Channel pruning: what is found, what is cut, and that nothing but the removed channels changes."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.channels import _left, find_groups, prune
from autocompress.compress.dependencies import dependencies
from autocompress.errors import SurgeryError
from autocompress.policy import Importance
from autocompress.probe import cost, probe
from autocompress.testing import ToyNet
from tests.models.zoo import WIDTH, ZOO, made

EXAMPLE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class PaddedShortcut(nn.Module):
    """A residual block whose shortcut is widened by zero channels (option A): torch-pruning takes it for an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images))
        x = torch.relu(self.wide(x) + nn.functional.pad(x, (0, 0, 0, 0, 4, 4)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def warm(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and scales that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(norm.weight, -1, 1, generator=generator)
            nn.init.normal_(norm.bias, generator=generator)
    return model.eval()


def test_groups_follow_the_residual_add() -> None:
    groups, refused = find_groups(ToyNet(), EXAMPLE)
    assert [(group.name, group.channels, group.writers, group.readers) for group in groups] == [
        ("stem", 16, ("stem", "conv2"), {"conv1": 1, "head": 16}),
        ("conv1", 32, ("conv1",), {"conv2": 1}),
    ]
    assert refused == {"head": "its channels are the outputs of the network"}


@pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale", "taylor"])
def test_pruning_equals_zeroing(importance: Importance) -> None:
    # prune() itself compares with the masked reference and raises; here the shapes and the costs are checked too.
    model = warm(ToyNet())
    before = cost(model, EXAMPLE)

    def gradients(network: nn.Module) -> None:
        network(EXAMPLE).square().sum().backward()

    prune(model, {"stem": 8, "conv1": 24}, importance, EXAMPLE, gradients)
    assert model.get_submodule("conv1").weight.shape == (24, 8, 3, 3)
    assert model.get_submodule("conv2").weight.shape == (8, 24, 3, 3)
    assert model.get_submodule("head").weight.shape == (4, 8 * 16)
    after = cost(model, EXAMPLE)
    assert after.macs < before.macs / 2
    assert after.params < before.params / 2


def test_taylor_ranks_channels_of_layers_that_are_not_trained_too() -> None:
    """A frozen layer, and one that the loss does not reach, had no gradient to rank by."""
    model = warm(ToyNet())
    model.get_submodule("conv1").requires_grad_(False)

    def gradients(network: nn.Module) -> None:
        network.get_submodule("stem")(EXAMPLE).square().sum().backward()

    prune(model, {"stem": 8, "conv1": 24}, "taylor", EXAMPLE, gradients)
    assert model.get_submodule("conv1").weight.shape == (24, 8, 3, 3)
    assert not any(parameter.requires_grad for parameter in model.get_submodule("conv1").parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_channels_are_counted_in_half_precision_too() -> None:
    """bfloat16 cannot tell 599 from 600."""
    model = nn.Sequential(nn.Conv2d(3, 600, 1), nn.BatchNorm2d(600), nn.ReLU(), nn.Conv2d(600, 4, 1)).bfloat16().eval()
    graph = dependencies(model, torch.randn(2, 3, 4, 4).bfloat16())
    left = _left(graph, model, {"0": list(range(0, 600, 2))})
    assert left["0"].tolist() == left["1"].tolist() == list(range(1, 600, 2))


def test_the_least_important_channels_go() -> None:
    model = ToyNet()
    warm(model)
    conv = model.conv1
    with torch.no_grad():
        conv.weight[4:] *= 0.01
        model.conv2.weight[:, 4:] *= 0.01
        model.bn1.weight.fill_(1)
    kept = conv.weight[:4].clone()
    prune(model, {"conv1": 4}, "l1", EXAMPLE)
    assert torch.equal(conv.weight, kept)


def test_importances_differ() -> None:
    models = [ToyNet(), ToyNet()]
    models[1].load_state_dict(warm(models[0]).state_dict())
    prune(models[0], {"conv1": 8}, "l1", EXAMPLE)
    prune(models[1], {"conv1": 8}, "bn_scale", EXAMPLE)
    assert not torch.equal(models[0].conv1.weight, models[1].conv1.weight)


def test_a_group_that_would_be_cut_wrongly_is_left_alone() -> None:
    model = PaddedShortcut().eval()
    layers = probe(model, EXAMPLE)
    assert layers.groups == ()
    assert layers.left_alone["stem"] == "its group joins layers of different widths (stem: 8, wide: 16)"


def test_a_cut_that_changes_more_than_its_channels_is_refused() -> None:
    # The sum counts the channels of one term backwards: torch-pruning cuts another channel than the one it should.
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Conv2d(1, 8, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.left(images) + self.right(images).flip(1))
            return logits

    layers = probe(Reversed().eval(), EXAMPLE)
    assert "differs from the one with those channels zeroed" in layers.left_alone["left"]
    with pytest.raises(SurgeryError, match="differs"):
        prune(Reversed(), {"left": 3}, "l1", EXAMPLE)


def test_probe_counts_and_leaves_the_model_as_it_was() -> None:
    model = ToyNet().train()
    before = deepcopy(model.state_dict())
    layers = probe(model, EXAMPLE)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    conv1 = layers.layer("conv1")
    assert (conv1.params, conv1.macs, conv1.group) == (16 * 32 * 9, 16 * 32 * 9 * 64, "conv1")
    assert layers.layer("head").macs == 256 * 4
    assert layers.ends == ("stem", "head")


class Heads(nn.Module):
    """Attention with the numbers of heads and channels as attributes; with `apart`, values have a width of their own."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.heads, self.width, self.other = 4, 16, 8 if apart else 16
        self.query, self.key, self.value = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, self.other)
        self.output = nn.Linear(self.other, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens = x.shape[:2]
        query, key = (layer(x).view(n, tokens, self.heads, self.width // self.heads) for layer in (self.query, self.key))
        value = self.value(x).view(n, tokens, self.heads, self.other // self.heads)
        weights = torch.einsum("nqhc,nkhc->nhqk", query, key).softmax(-1)
        mixed = torch.einsum("nhqk,nkhc->nqhc", weights, value)
        outputs: Tensor = self.output(mixed.reshape(n, tokens, self.other)).mean(1)
        return outputs


def test_attributes_that_count_heads_change_with_them() -> None:
    torch.manual_seed(0)
    model, inputs = Heads(apart=False).eval(), torch.randn(8, 5, 6)
    (group,), _ = find_groups(model, inputs)
    assert (group.unit, set(group.counts)) == (4, {"heads", "width", "other"})
    prune(model, {group.name: 8}, "l1", inputs, groups=[group])
    assert (model.heads, model.width, model.query.out_features) == (2, 8, 8)
    assert model(inputs).shape == (8, 3)


def test_two_groups_never_share_what_counts_them() -> None:
    torch.manual_seed(0)
    groups, refused = find_groups(Heads(apart=True).eval(), torch.randn(8, 5, 6))
    counted = [count for group in groups for count in group.counts]
    assert len(counted) == len(set(counted))
    assert {"query", "value"} <= {*refused, *(name for group in groups for name in group.writers)}


def test_a_block_of_a_group_norm_goes_as_a_whole() -> None:
    torch.manual_seed(0)
    norm, head = nn.GroupNorm(3, 12), nn.Linear(12 * 36, 2)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), norm, nn.ReLU(), nn.Flatten(), head).eval()
    nn.init.normal_(norm.bias)
    inputs = torch.randn(4, 1, 8, 8)
    (group,), _ = find_groups(model, inputs)
    assert (group.unit, group.readers) == (4, {"4": 36})
    prune(model, {"0": 8}, "l2", inputs, groups=[group])
    assert (norm.num_groups, norm.num_channels, head.in_features) == (2, 8, 8 * 36)


def test_the_residual_width_of_a_transformer_is_cut_and_its_norms_with_it() -> None:
    """Three of 32 channels in the order they had: those of a layer norm were once shuffled where few are left."""
    model, inputs = made("vit_separate"), ZOO["vit_separate"].inputs(4)
    groups, _ = find_groups(model, inputs)
    width = groups[0]
    assert (width.name, width.channels) == ("patch_embed.proj", WIDTH)
    assert "head" in width.readers
    with torch.no_grad():
        model.get_parameter("blocks.0.body.0.weight").copy_(torch.arange(WIDTH))
    prune(model, {width.name: 3}, "l1", inputs, groups=groups)
    norm = model.get_submodule("blocks.0.body.0")
    assert isinstance(norm, nn.LayerNorm)
    assert norm.normalized_shape == (3,)
    assert norm.weight.tolist() == sorted(norm.weight.tolist())
    assert len(model.get_parameter("patch_embed.proj.weight")) == 3


def test_weights_that_were_shared_still_are() -> None:
    model, inputs = made("tied_lm"), ZOO["tied_lm"].inputs(4)
    groups, _ = find_groups(model, inputs)
    assert groups[0].name == "embed.words"
    prune(model, {"embed.words": 8}, "l1", inputs, groups=groups)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("embed.words.weight")
    assert model.get_parameter("lm_head.weight").shape == (50, 8)


def test_a_norm_over_pixels_too_is_refused_in_words() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.LayerNorm([8, 8, 8]), nn.Flatten(), nn.Linear(512, 4)).eval()
    groups, refused = find_groups(model, EXAMPLE)
    assert groups == []
    assert "LayerNorm" in refused["0"]


class Louder(nn.Conv2d):
    """A convolution that computes in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


class WithLouder(nn.Module):
    """Logits of shape (n, 4), of pictures of shape (n, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loud, self.plain = nn.Conv2d(1, 16, 3), Louder(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        x = torch.relu(self.stem(pictures))
        logits: Tensor = self.head(torch.relu(self.plain(x + self.loud(x))).mean((2, 3)))
        return logits


def test_channels_that_a_layer_of_ones_own_has_too_are_left_alone() -> None:
    """They were in a group of which the tables of a search knew one layer less: it ended in a traceback."""
    groups, refused = find_groups(WithLouder(), EXAMPLE)
    assert [group.name for group in groups] == ["plain"]
    said = "its channels are also those of loud, which is left alone"
    assert {name: refused[name] for name in ("stem", "loud")} == {"stem": said, "loud": said}
    limited = nn.Sequential(nn.Embedding(20, 16, max_norm=1.0), nn.Flatten(), nn.Linear(64, 4))
    assert find_groups(limited, torch.randint(20, (4, 4)))[0] == []


class Residual(nn.Module):
    """Tokens of width 16, two residual blocks with norms of one kind before or after, and logits (n, 4)."""

    def __init__(self, norm: Callable[[], nn.Module], *, first: bool) -> None:
        super().__init__()
        self.first, self.embed, self.places = first, nn.Linear(4, 16), nn.Parameter(torch.zeros(1, 6, 16))
        self.norms = nn.ModuleList(norm() for _ in range(2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x)) if self.first else norm(x + block(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


TOKENS = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0))
_WITHOUT_SCALES = partial(nn.LayerNorm, 16, elementwise_affine=False)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("norm", [partial(nn.LayerNorm, 16), _WITHOUT_SCALES, partial(nn.RMSNorm, 16)])
def test_a_width_is_cut_whatever_its_norms_and_parameters(norm: Callable[[], nn.Module], first: bool) -> None:
    """Parameters that were zero when the network was probed are not any more when it is pruned."""
    model = Residual(norm, first=first).eval()
    groups, _ = find_groups(model, TOKENS)
    assert groups[0].name == "embed"
    assert groups[0].extra_params == 6 + sum(value.numel() for value in model.norms.parameters()) // 16
    with torch.no_grad():
        for value in (model.places, *model.norms.parameters()):
            value.normal_()
    prune(model, {"embed": 5}, "l1", TOKENS, groups=groups)
    assert [tuple(value.shape) for value in (model.embed.weight, model.places, model.head.weight)] == [
        (5, 4),
        (1, 6, 5),
        (4, 5),
    ]


def test_parameters_with_their_channels_in_another_dimension_are_counted_right() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)
            self.scale, self.shift = nn.Parameter(torch.ones(16, 1, 1)), nn.Parameter(torch.zeros(1, 16, 1, 1))

        def forward(self, pictures: Tensor) -> Tensor:
            logits: Tensor = self.head(self.deep(torch.relu(self.stem(pictures) * self.scale + self.shift)).mean((2, 3)))
            return logits

    model = Scaled()
    groups, _ = find_groups(model, EXAMPLE)
    assert [(group.name, group.extra_params) for group in groups] == [("stem", 2), ("deep", 0)]
    nn.init.ones_(model.shift)
    prune(model, {"stem": 6}, "l1", EXAMPLE, groups=groups)
    assert (model.scale.shape, model.shift.shape) == ((6, 1, 1), (1, 6, 1, 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(20, 16), nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.words(words))[0][:, -1])
        return logits


class Factors(nn.Module):
    """No layer reads what the embeddings give."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(20, 16), nn.Embedding(20, 16)

    def forward(self, numbers: Tensor) -> Tensor:
        scores: Tensor = (self.users(numbers[:, 0]) * self.things(numbers[:, 1])).sum(1, keepdim=True)
        return scores


class MaskedLanguageModel(nn.Module):
    """Its head has the weight of the embedding, and reads other channels than those that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.transform, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.transform(self.words(words))))
        return logits


@pytest.mark.parametrize(
    ("model", "layer", "said"),
    [
        (Recurrent(), "words", "its channels are also those of lstm, which is left alone"),
        (Factors(), "users", "no convolution and no linear layer has its channels, to tell which of them matter"),
        (MaskedLanguageModel(), "transform", "head.weight is words.weight too, and would no longer be"),
    ],
)
def test_what_embeddings_give_is_left_alone_where_it_must_be(model: nn.Module, layer: str, said: str) -> None:
    groups, refused = find_groups(model.eval(), torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0)))
    assert groups == []
    assert refused[layer] == said


def test_a_group_norm_with_a_single_group_is_refused_in_words() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    groups, refused = find_groups(model, EXAMPLE)
    assert groups == []
    assert "the pruned network differs from the one with those channels zeroed" in refused["0"]


def test_what_the_library_cannot_rank_is_left_alone() -> None:
    """Its rank of channels, which a trial asks for, failed where the library mistakes pixels for channels."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.last, self.rows = nn.Conv2d(1, 8, 1, 2), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(4, 6)

        def forward(self, pictures: Tensor) -> Tensor:
            sums: Tensor = self.rows(self.last(torch.relu(self.twice(pictures))).mean(3)).mean(1)
            return sums

    groups, refused = find_groups(Rows().eval(), EXAMPLE)
    assert {*refused} | {group.name for group in groups} >= {"twice", "last", "rows"}
    for group in groups:
        prune(Rows().eval(), {group.name: 4}, "l1", EXAMPLE, groups=groups)
