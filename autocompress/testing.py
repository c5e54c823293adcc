"""What the author of a task, a space, a runtime or a driver tests with: small tasks that train in a second."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.task import Array, ClassificationTask, Split


class ToyNet(nn.Module):
    """Two convolutions with batch norm, a residual add and a linear layer: one of everything that pruning must follow."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(images)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        out: Tensor = self.head(self.pool(x).flatten(1))
        return out


class ToyTask(ClassificationTask):
    """Noisy 8x8 pictures of a horizontal bar, a vertical bar, a cross and a square, told apart by `ToyNet`.

    Made by a seeded generator: 256 pictures to train on, 256 to validate, 256 to test.
    """

    def __init__(self, noise: float = 0.6, epochs: int = 6) -> None:
        self.noise = noise
        self.epochs = epochs

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return ToyNet()

    def data(self, split: Split) -> tuple[Array, Array]:
        draw = np.random.default_rng({"train": 1, "validation": 2, "test": 3}[split])
        labels = draw.integers(0, 4, 256)
        pictures = draw.normal(0.0, self.noise, (256, 1, 8, 8)).astype(np.float32)
        for picture, label in zip(pictures[:, 0], labels, strict=True):
            row, column = draw.integers(1, 5, 2)
            if label in (0, 2):
                picture[row + 1, column - 1 : column + 3] += 2
            if label in (1, 2):
                picture[row - 1 : row + 3, column + 1] += 2
            if label == 3:
                picture[row : row + 3, column : column + 3] += 1
        return pictures, labels.astype(np.int64)

    def train(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(self.epochs):
            for batch in torch.randperm(len(inputs)).split(32):
                optimizer.zero_grad()
                self.loss(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()


class NanTask(ToyTask):
    """Its fine-tuning loss is never finite: every trial that trains must end as FAILED. The baseline trains as usual."""

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs * float("nan")


class FailingTask(ToyTask):
    """Raises in the function named by `where`: what a user's own mistake looks like."""

    def __init__(self, where: Literal["model", "data", "loss", "score", "augment"]) -> None:
        super().__init__()
        self.where = where

    def model(self) -> nn.Module:
        self._fail("model")
        return super().model()

    def data(self, split: Split) -> tuple[Array, Array]:
        self._fail("data")
        return super().data(split)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._fail("loss")
        return super().loss(outputs, targets)

    def score(self, outputs: Array, targets: Array) -> float:
        self._fail("score")
        return super().score(outputs, targets)

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        self._fail("augment")
        return inputs

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(f"a mistake in {where}")
