"""Claim: 13.2x smaller and 1.8x faster on ONNX Runtime (one thread, batch 1) at 69.5 % on test, the uncompressed network at
70.5 % (n = 5,000, +-1.3 points each). One search of 800 worker-seconds (`benchmarks/models.py mobilenetv2`), 26 trials,
2026-11-28, one core of an AMD EPYC with VNNI, other work on its neighbour, torch 2.13.0, onnxruntime 1.32.0.

MobileNetV2 for 32x32 pictures (inverted residuals, depthwise convolutions, ReLU6), on CIFAR-10, trained from scratch when
the search starts. CIFAR10_DIR names the folder with ``cifar10_jpeg.npz``. Half the published width by default, which is
what two cores can train; set `width=1.0` for the published one.
"""

from cifar10 import FromScratch, required
from torch import Tensor, nn

from autocompress import Budget, Experiment, Halving, Refit
from search_spaces import budgeted

# Of each stage: times wider inside of a block, channels, blocks, stride of the first. The published network is for pictures
# of 224x224: here the first convolution and the fourth stage keep the size.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 1), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FIRST, LAST = 32, 1280


def convolution(channels: int, wanted: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size of its pictures at stride 1, and its batch norm."""
    padding = kernel // 2
    return [
        nn.Conv2d(channels, wanted, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(wanted),
    ]


class Block(nn.Module):
    """An inverted residual: widened `times` by a 1x1 convolution, a depthwise 3x3 one, and a 1x1 one without activation."""

    def __init__(self, channels: int, wanted: int, times: int, stride: int) -> None:
        super().__init__()
        inside = channels * times
        widened = [*convolution(channels, inside, 1), nn.ReLU6()] if times > 1 else []
        depthwise = [*convolution(inside, inside, 3, stride=stride, groups=inside), nn.ReLU6()]
        self.layers = nn.Sequential(*widened, *depthwise, *convolution(inside, wanted, 1))
        self.is_residual = stride == 1 and channels == wanted

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


class MobileNetV2(nn.Module):
    """Pictures of shape (n, 3, 32, 32) in, logits of shape (n, 10) out. `width` scales all channel counts."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = scaled(FIRST, width)
        self.first = nn.Sequential(*convolution(3, channels, 3), nn.ReLU6())
        blocks = []
        for times, published, count, stride in STAGES:
            wanted = scaled(published, width)
            for place in range(count):
                blocks.append(Block(channels, wanted, times, stride if place == 0 else 1))
                channels = wanted
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*convolution(channels, scaled(LAST, width), 1), nn.ReLU6())
        self.head = nn.Linear(scaled(LAST, width), 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.blocks(self.first(images))).mean((2, 3)))
        return logits


def scaled(channels: int, width: float) -> int:
    """The multiple of 8 that is nearest to `width` times so many channels, as in the published network."""
    return max(8, int(channels * width + 4) // 8 * 8)


class Cifar10MobileNetV2(FromScratch):
    def model(self) -> nn.Module:
        return MobileNetV2(self.width)


required("cifar10_jpeg.npz")
experiment = Experiment(
    task=Cifar10MobileNetV2(),
    space=budgeted.make(steps=100),
    start=budgeted.start,
    halving=Halving(eta=3, rungs=(0.0, 1 / 3)),
    refit=Refit(models=6, share=0.4),
    objectives=("size_bytes", "latency_ms", "accuracy"),
    limits=("accuracy >= baseline - 0.03",),
    budget=Budget(trials=100, minutes=15),
    seed=0,
)
