"""A zoo of small networks: one of every architecture that people bring, each with inputs for it. None is trained.

They are written as their users write them: nothing in them makes it easier to prune, to round or to export them.
"""

# What a module gives is Any to mypy.
# mypy: disable-error-code="no-any-return"

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that everyone gives it

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Act = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]

CLASSES = 10
WORDS = 50
TOKENS = 12
WIDTH = 32
HEADS = 4


@dataclass(frozen=True)
class Specimen:
    """One architecture: how to make it, and a batch of so many inputs for it, the same ones every time."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]


def made(name: str) -> nn.Module:
    """The network called `name` as if it had been trained: no norm in it is the identity. Equal every time, ready to use."""
    specimen = ZOO[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = specimen.make().train()
        batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        others = [module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
        for parameter in (parameter for norm in [*batch_norms, *others] for parameter in norm.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for norm in batch_norms:
            norm.momentum = None  # its statistics become those of the one batch
        outputs(model, specimen.inputs(64))
        for norm in batch_norms:
            norm.momentum = 0.1
    return model.eval()


def outputs(model: nn.Module, inputs: Inputs) -> Any:
    """What `model` gives for `inputs`: a tuple goes in by position, a dict by name."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


# Inputs.


def numbers(*shape: int) -> Callable[[int], Tensor]:
    """Makes batches of `shape`: noise around a mean of its own for each channel of each example."""

    def batch(count: int) -> Tensor:
        draw = _draw()
        means = torch.randn(count, shape[0], *[1] * (len(shape) - 1), generator=draw)
        return means + torch.randn(count, *shape, generator=draw)

    return batch


def choices(options: int, *shape: int) -> Callable[[int], Tensor]:
    """Makes batches of `shape`: whole numbers below `options`."""
    return lambda count: torch.randint(options, (count, *shape), generator=_draw())


def masked_words(count: int) -> dict[str, Tensor]:
    """Word numbers of shape (count, 12), and a mask of the same shape: 1 for the first four to twelve words of each."""
    lengths = torch.randint(4, TOKENS + 1, (count, 1), generator=_draw())
    return {"input_ids": choices(WORDS, TOKENS)(count), "attention_mask": (torch.arange(TOKENS) < lengths).long()}


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Parts that many networks share.


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    *,
    norm: Norm | None = nn.BatchNorm2d,
    act: Act | None = nn.ReLU,
) -> nn.Module:
    """A convolution that pads, with a norm or else a bias, and an activation unless `act` is None."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=norm is None)
    return nn.Sequential(layer, *([norm(outputs)] if norm else []), *([act()] if act else []))


def head(inputs: int, outputs: int = CLASSES) -> nn.Sequential:
    """The mean of each channel, and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def mlp_of(width: int) -> nn.Sequential:
    """The two linear layers of a transformer block."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Residual(nn.Module):
    """The sum of a body and a shortcut (by default the input), and an activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: Act = nn.Identity) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


class Concat(nn.Module):
    """The channels of all branches, one after another."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that is computed from the means of all channels."""

    def __init__(self, channels: int, act: Act, gate: Act) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.act = act()
        self.expand = nn.Conv2d(channels // 4, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


# Residual networks: pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out.


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, with one ReLU module for both places and an addition in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class PaddedShortcut(nn.Module):
    """Every other pixel, between channels of zeros: a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.new = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


def projection(inputs: int, outputs: int, stride: int = 2) -> nn.Module:
    """A 1x1 convolution and batch norm: a shortcut into another width."""
    return conv(inputs, outputs, 1, stride, act=None)


def resnet(shortcut: Callable[[int, int], nn.Module]) -> nn.Module:
    """A residual network whose shortcuts into a new width come from `shortcut`."""
    blocks = [BasicBlock(12, 12), BasicBlock(12, 24, 2, shortcut(12, 24)), BasicBlock(24, 24)]
    return nn.Sequential(conv(3, 12), *blocks, head(24))


def bottleneck_resnet(groups: int) -> nn.Module:
    """Blocks of a reducing, a grouped and an expanding convolution."""

    def block(inputs: int, inner: int, outputs: int, stride: int = 1) -> nn.Module:
        body = nn.Sequential(conv(inputs, inner, 1), conv(inner, inner, 3, stride, groups), conv(inner, outputs, 1, act=None))
        return Residual(body, None if inputs == outputs else projection(inputs, outputs, stride), nn.ReLU)

    return nn.Sequential(conv(3, 12), block(12, 8, 32), block(32, 8, 32), block(32, 16, 48, 2), block(48, 16, 48), head(48))


def plain_resnet(norm: Norm | None, act: Act) -> nn.Module:
    """Blocks of one convolution, with a norm and an activation of one's choice."""

    def part(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        return conv(inputs, outputs, 3, stride, norm=norm, act=act)

    return nn.Sequential(part(3, 16), Residual(part(16, 16)), part(16, 24, 2), Residual(part(24, 24)), head(24))


# Mobile networks: pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out.


def mobile(act: Act, kernel: int = 3, gate: tuple[Act, Act] | None = None) -> nn.Module:
    """Blocks that expand, filter each channel by itself (and squeeze and excite, with the two of `gate`), and reduce."""

    def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        inner = 3 * inputs
        parts = [conv(inputs, inner, 1, act=act), conv(inner, inner, kernel, stride, inner, act=act)]
        parts += [SqueezeExcite(inner, *gate)] if gate else []
        body = nn.Sequential(*parts, conv(inner, outputs, 1, act=None))
        return Residual(body) if inputs == outputs else body

    blocks = [block(8, 16, 2), block(16, 16), block(16, 24, 2)]
    return nn.Sequential(conv(3, 8, act=act), *blocks, conv(24, 48, 1, act=act), head(48))


class ShuffleBlock(nn.Module):
    """Half of the channels pass through, half are convolved; then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, 1, half, act=None), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        out = torch.cat([left, self.branch(right)], 1)
        count, channels, height, width = out.shape
        out = out.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return out.view(count, channels, height, width)


def shufflenet() -> nn.Module:
    """Two widths of blocks, with a strided convolution between them."""
    blocks = [ShuffleBlock(24), ShuffleBlock(24), conv(24, 48, 3, 2), ShuffleBlock(48)]
    return nn.Sequential(conv(3, 24), *blocks, head(48))


# Other convolutional networks.


class Vgg(nn.Module):
    """Pictures of shape (n, 3, 32, 32) in, logits of shape (n, 10) out; the first linear layer sees 16 pixels per channel."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in [(3, 8), (8, 16), (16, 32)]:
            for source in (inputs, width):
                layers += [nn.Conv2d(source, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32 * 16, 40), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(40, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), -1)
        return self.classifier(x)


class DenseLayer(nn.Module):
    """Adds `growth` new channels to those that it is given."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return torch.cat([x, out], 1)


def densenet() -> nn.Module:
    """Pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out."""
    transition = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2))
    first, second = [DenseLayer(16, 8), DenseLayer(24, 8)], [DenseLayer(16, 8), DenseLayer(24, 8)]
    last = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *first, transition, *second, last, head(32))


def inception() -> nn.Module:
    """Pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out."""

    def block(inputs: int) -> nn.Module:
        wide = nn.Sequential(conv(inputs, 8, 1), conv(8, 12))
        wider = nn.Sequential(conv(inputs, 4, 1), conv(4, 8), conv(8, 8))
        pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(inputs, 6, 1))
        return Concat(conv(inputs, 10, 1), wide, wider, pooled)

    return nn.Sequential(conv(3, 12), block(12), nn.MaxPool2d(2), block(36), head(36))


class Unet(nn.Module):
    """Pictures of shape (n, 3, 32, 32) in, logits of shape (n, 4, 32, 32) out."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 16), conv(16, 32)
        self.up2, self.merge2 = nn.ConvTranspose2d(32, 16, 2, stride=2), conv(32, 16)
        self.up1, self.merge1 = nn.ConvTranspose2d(16, 8, 2, stride=2), conv(16, 8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        x = self.bottom(F.max_pool2d(coarse, 2))
        x = self.merge2(torch.cat([self.up2(x), coarse], dim=1))
        x = self.merge1(torch.cat([self.up1(x), fine], dim=1))
        return self.out(x)


class ConvNextBlock(nn.Module):
    """A filter per channel, then two linear layers on the channels of each pixel, scaled per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp_of(width)
        self.gamma = nn.Parameter(0.5 + torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dwconv(x).permute(0, 2, 3, 1)
        out = self.gamma * self.mlp(self.norm(out))
        return x + out.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """Pictures of shape (n, 3, 32, 32) in, logits of shape (n, 10) out."""
    blocks = [ConvNextBlock(24), ConvNextBlock(24), nn.Conv2d(24, 40, 2, stride=2), ConvNextBlock(40)]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(40), nn.Linear(40, CLASSES)]
    return nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), *blocks, *last)


class SharedConv(nn.Module):
    """Pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out; one convolution runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv(3, 16), nn.Conv2d(16, 16, 3, padding=1), head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.stem(x)))
        x = torch.relu(self.conv(F.max_pool2d(x, 2)))
        return self.head(x)


def conv1d_audio() -> nn.Module:
    """Sounds of shape (n, 1, 256) in, logits of shape (n, 10) out."""

    def part(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        layer = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        return [layer, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]

    last = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES)]
    return nn.Sequential(*part(1, 16, 9), *part(16, 24, 5), *part(24, 32, 3), *last)


def autoencoder() -> nn.Module:
    """Pictures of shape (n, 3, 16, 16) in, pictures of the same shape out."""
    up1, up2 = (nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1) for inputs, outputs in [(8, 16), (16, 3)])
    return nn.Sequential(conv(3, 16, stride=2), conv(16, 8, stride=2), up1, nn.BatchNorm2d(16), nn.ReLU(), up2)


class Detector(nn.Module):
    """Pictures of shape (n, 3, 32, 32) in; a dict of boxes (n, 4) in 0..1 and logits (n, 5) out."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 12, stride=2), conv(12, 24, stride=2), conv(24, 32))
        self.boxes, self.logits = head(32, 4), head(32, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        return {"boxes": self.boxes(features).sigmoid(), "logits": self.logits(features)}


class Embedder(nn.Module):
    """Pictures of shape (n, 3, 16, 16) in, vectors of shape (n, 16) and length 1 out."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(conv(3, 12), conv(12, 24, stride=2), conv(24, 24)), head(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(x)), dim=1)


# Linear layers only.


def mlp() -> nn.Module:
    """Vectors of shape (n, 20) in, logits of shape (n, 10) out."""
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, CLASSES))


def mlp_batchnorm() -> nn.Module:
    """Pictures of shape (n, 1, 8, 8) in, logits of shape (n, 10) out."""
    first, second = [nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU()], [nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *first, nn.Dropout(0.2), *second, nn.Linear(32, CLASSES))


class Tabular(nn.Module):
    """Numbers of shape (n, 5) and categories of shape (n, 2) in, one number of shape (n, 1) out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(4, 6), nn.Embedding(4, 3)
        self.layers = nn.Sequential(nn.Linear(5 + 6 + 3, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        x = torch.cat([numbers, self.first(categories[:, 0]), self.second(categories[:, 1])], dim=1)
        return self.layers(x)


class TwoInputs(nn.Module):
    """Pictures of shape (n, 3, 16, 16) and vectors of shape (n, 6) in, logits of shape (n, 10) out."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(conv(3, 12), conv(12, 24, stride=2), head(24, 20))
        self.vector = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(20 + 12, 24), nn.ReLU(), nn.Linear(24, CLASSES))

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        return self.head(torch.cat([self.picture(picture), self.vector(vector)], dim=1))


# Transformers, and others that cut a picture into tokens: these have the shape (n, tokens, 32).


class TorchAttention(nn.Module):
    """The attention that torch brings, all its weights in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class SeparateAttention(nn.Module):
    """A linear layer each for queries, keys and values; `causal`: no token sees those after it."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.heads, self.head_dim, self.width = HEADS, WIDTH // HEADS, WIDTH
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(x.shape[0], -1, self.heads, self.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape[0], -1, self.width))


class FusedAttention(nn.Module):
    """One linear layer for queries, keys and values; the attention is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = ((query * (width // HEADS) ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(count, tokens, width))


def transformer(attention: Act) -> nn.Sequential:
    """Two transformer blocks with the norms first; `attention` makes the attention of one."""
    parts = [part for _ in range(2) for part in (attention(), mlp_of(WIDTH))]
    return nn.Sequential(*(Residual(nn.Sequential(nn.LayerNorm(WIDTH), part)) for part in parts))


class Patches(nn.Module):
    """Pictures of shape (n, 3, 16, 16) in, 16 tokens out."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """Pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out, read from a token of their own."""

    def __init__(self, attention: Act) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, WIDTH) / 4)
        self.blocks = transformer(attention)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    """Linear layers over the 16 tokens, and over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(WIDTH), mlp_of(16)
        self.norm2, self.channels = nn.LayerNorm(WIDTH), mlp_of(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Pooled(nn.Module):
    """The mean of the tokens, as logits of shape (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(1))


def mlp_mixer() -> nn.Module:
    """Pictures of shape (n, 3, 16, 16) in, logits of shape (n, 10) out."""
    return nn.Sequential(Patches(), MixerBlock(), MixerBlock(), Pooled())


# Text: word numbers of shape (n, 12) in.


class Embed(nn.Module):
    """Word numbers of shape (n, 12) in, tokens out that know their place."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        nn.init.normal_(self.words.weight, std=0.25)
        self.positions = nn.Parameter(torch.randn(TOKENS, WIDTH) / 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.words(words) + self.positions


def torch_encoder() -> nn.Module:
    """Logits of shape (n, 10) out."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True, norm_first=True)
    return nn.Sequential(Embed(), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), Pooled())


def text_tagger() -> nn.Module:
    """A tag for each word: logits of shape (n, 12, 7) out."""
    return nn.Sequential(Embed(), transformer(SeparateAttention), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 7))


class TiedLanguageModel(nn.Module):
    """The word after each word: logits of shape (n, 12, 50) out, by the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed()
        self.blocks = transformer(lambda: SeparateAttention(causal=True))
        self.norm, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.embed.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.lm_head(self.norm(self.blocks(self.embed(words))))


class BertLayer(nn.Module):
    """A transformer block with the norms last; a token of which the mask is 0 is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense, self.attention_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp, self.output_norm = mlp_of(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
        mixed = self.dropout(scores.softmax(-1)) @ value
        x = self.attention_norm(x + self.dropout(self.dense(mixed.transpose(1, 2).flatten(2))))
        return self.output_norm(x + self.dropout(self.mlp(x)))


class Bert(nn.Module):
    """Word numbers and a mask by name, both of shape (n, 12), in; logits of shape (n, 10) out."""

    position_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.register_buffer("position_ids", torch.arange(TOKENS)[None], persistent=False)
        self.norm, self.layers = nn.LayerNorm(WIDTH), nn.ModuleList([BertLayer(), BertLayer()])
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.word_embeddings(input_ids) + self.position_embeddings(self.position_ids))
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


# Recurrent networks: logits of shape (n, 10) out.


class LstmText(nn.Module):
    """Word numbers of shape (n, 12) in."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 16), nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.words(words))
        return self.head(hidden[-1])


class GruAudio(nn.Module):
    """Sounds of shape (n, 1, 256) in: convolved into 16 steps, which are read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv1d(1, 12, 9, stride=4, padding=4), nn.Conv1d(12, 16, 5, stride=4, padding=2)
        self.front = nn.Sequential(first, nn.BatchNorm1d(12), nn.ReLU(), second, nn.ReLU())
        self.gru, self.head = nn.GRU(16, 20, batch_first=True, bidirectional=True), nn.Linear(40, CLASSES)

    def forward(self, sound: Tensor) -> Tensor:
        steps, _ = self.gru(self.front(sound).transpose(1, 2))
        return self.head(steps.mean(dim=1))


_small, _large, _sound = numbers(3, 16, 16), numbers(3, 32, 32), numbers(1, 256)
_words, _vector, _row, _categories = choices(WORDS, TOKENS), numbers(6), numbers(5), choices(4, 2)

ZOO: dict[str, Specimen] = {
    "vgg": Specimen(Vgg, _large),
    "resnet_basic": Specimen(lambda: resnet(projection), _small),
    "resnet_bottleneck": Specimen(lambda: bottleneck_resnet(groups=1), _small),
    "resnet_option_a": Specimen(lambda: resnet(PaddedShortcut), _small),
    "resnext": Specimen(lambda: bottleneck_resnet(groups=4), _small),
    "mobilenet_v2": Specimen(lambda: mobile(nn.ReLU6), _small),
    "mobilenet_v3": Specimen(lambda: mobile(nn.Hardswish, 5, (nn.ReLU, nn.Hardsigmoid)), _small),
    "efficientnet": Specimen(lambda: mobile(nn.SiLU, 3, (nn.SiLU, nn.Sigmoid)), _small),
    "densenet": Specimen(densenet, _small),
    "inception": Specimen(inception, _small),
    "unet": Specimen(Unet, _large),
    "convnext": Specimen(convnext, _large),
    "groupnorm_net": Specimen(lambda: plain_resnet(lambda channels: nn.GroupNorm(4, channels), nn.ReLU), _small),
    "norm_free": Specimen(lambda: plain_resnet(None, lambda: nn.LeakyReLU(0.1)), _small),
    "shufflenet": Specimen(shufflenet, _small),
    "conv1d_audio": Specimen(conv1d_audio, _sound),
    "autoencoder": Specimen(autoencoder, _small),
    "shared_conv": Specimen(SharedConv, _small),
    "mlp": Specimen(mlp, numbers(20)),
    "mlp_batchnorm": Specimen(mlp_batchnorm, numbers(1, 8, 8)),
    "mlp_mixer": Specimen(mlp_mixer, _small),
    "vit_mha": Specimen(lambda: Vit(TorchAttention), _small),
    "vit_separate": Specimen(lambda: Vit(SeparateAttention), _small),
    "vit_fused_qkv": Specimen(lambda: Vit(FusedAttention), _small),
    "torch_encoder": Specimen(torch_encoder, _words),
    "bert": Specimen(Bert, masked_words),
    "text_tagger": Specimen(text_tagger, _words),
    "tied_lm": Specimen(TiedLanguageModel, _words),
    "lstm_text": Specimen(LstmText, _words),
    "gru_audio": Specimen(GruAudio, _sound),
    "two_inputs": Specimen(TwoInputs, lambda count: (_small(count), _vector(count))),
    "detector": Specimen(Detector, _large),
    "tabular": Specimen(Tabular, lambda count: {"numbers": _row(count), "categories": _categories(count)}),
    "embedder": Specimen(Embedder, _small),
}
