"""Claim: after 800 worker-seconds 14 models on the front of 61 trials; the recommended one is 5.9x smaller and 2.3x faster on
ONNX Runtime (one thread, batch 1) at 86.4 % on test, another 10.4x and 2.0x at 86.1 %, the uncompressed network at 87.0 %
(n = 3,000, +-1.2 points each). One run (`benchmarks/search.py run resnet20 --seed 0 --worker-seconds 800`), 2026-11-27, one
core of an AMD EPYC with VNNI, other work on its neighbour, torch 2.13.0, onnxruntime 1.32.0.

ResNet-20 on CIFAR-10, from trained weights. CIFAR10_DIR names the folder with ``cifar10_jpeg.npz`` and
``resnet20_cifar10_jpeg.pt``. These weights have seen all train images: what is validated and tested by is parted from the
file's 5,000 test images.
"""

import torch
from cifar10 import VALIDATION, Cifar10, pictures, required
from torch import Tensor, nn

from autocompress import Budget, Experiment, Halving, Refit
from autocompress.errors import ExperimentError
from autocompress.task import Array, Split
from search_spaces import budgeted


class Shortcut(nn.Conv2d):
    """A shortcut without trained weights: takes every second pixel and adds channels of zeros on both sides.

    The published network pads with zeros. Written as a 1x1 convolution with an identity kernel it is the same, bit for
    bit, and pruning can follow it.
    """

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__(channels, wider, 1, stride=2, bias=False)
        before = (wider - channels) // 2
        kernel = torch.zeros(wider, channels, 1, 1)
        kernel[torch.arange(channels) + before, torch.arange(channels)] = 1
        self.weight = nn.Parameter(kernel, requires_grad=False)


class Block(nn.Module):
    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride=1 if channels == wider else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.shortcut = nn.Identity() if channels == wider else Shortcut(channels, wider)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """Pictures of shape (n, 3, 32, 32) in, logits of shape (n, 10) out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class Cifar10ResNet20(Cifar10):
    def data(self, split: Split) -> tuple[Array, Array]:
        """All 20,000 train images; of the test images, which the weights have not seen, 2,000 to validate and 3,000 to test."""
        images, labels = pictures("train" if split == "train" else "test")
        part = {"train": slice(None), "validation": slice(VALIDATION), "test": slice(VALIDATION, None)}[split]
        return images[part], labels[part]

    def model(self) -> nn.Module:
        model = ResNet20()
        file = required("resnet20_cifar10_jpeg.pt")
        weights = torch.load(file, map_location="cpu", weights_only=True)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if unexpected or any("shortcut" not in name for name in missing):
            raise ExperimentError(f"{file} holds no ResNet-20: it lacks {missing[:3]}, and has {unexpected[:3]} besides")
        return model


required("cifar10_jpeg.npz")
experiment = Experiment(
    task=Cifar10ResNet20(),
    space=budgeted.make(steps=100),
    start=budgeted.start,
    halving=Halving(eta=3, rungs=(0.0, 0.5)),
    refit=Refit(models=6, share=0.5),
    objectives=("size_bytes", "latency_ms", "accuracy"),
    limits=("accuracy >= baseline - 0.05",),
    budget=Budget(trials=60),
    seed=0,
)
