"""CIFAR-10 from a folder that the user names, shared by the experiments on it.

The folder, named by the environment variable CIFAR10_DIR, holds ``cifar10_jpeg.npz`` with the arrays train_x
(n, 32, 32, 3) uint8, train_y (n,) uint8, test_x and test_y.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autocompress import ClassificationTask
from autocompress.errors import ExperimentError
from autocompress.fast import fast_precision
from autocompress.task import Array, Split

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
VALIDATION = 2000
_BATCH = 128


class Cifar10(ClassificationTask):
    """Pictures of shape (3, 32, 32), normalised, in ten classes. 2,000 of the train images are kept for validation."""

    def data(self, split: Split) -> tuple[Array, Array]:
        images, labels = pictures("test" if split == "test" else "train")
        part = {"train": slice(VALIDATION, None), "validation": slice(VALIDATION), "test": slice(None)}[split]
        return images[part], labels[part]

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Mirrors half of the pictures and shifts the whole batch by up to four pixels each way."""
        mirrored = torch.rand(len(inputs), 1, 1, 1, generator=generator).to(inputs.device) < 0.5
        pictures = torch.where(mirrored, inputs.flip(3), inputs)
        down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
        padded = torch.nn.functional.pad(pictures, (4, 4, 4, 4))
        return padded[:, :, down : down + 32, right : right + 32]


class FromScratch(Cifar10):
    """CIFAR-10 for a network without published weights: `width` scales its channels, `epochs` is how long it is trained."""

    def __init__(self, width: float = 0.5, epochs: int = 12) -> None:
        self.width = width
        self.epochs = epochs

    def train(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        """Trains `model` in place by SGD with Nesterov momentum and a one-cycle learning rate, on augmented pictures.

        In half precision where the hardware is made for it: VGG16 takes half as long then.
        """
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        batches = len(inputs) // _BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=self.epochs * batches)
        # The same values, in five sixths of the time on a CPU.
        laid_out: Any = model.to
        laid_out(memory_format=torch.channels_last)
        precision = fast_precision(model, inputs[:_BATCH])
        model.train()
        for _ in range(self.epochs):
            for batch in torch.randperm(len(inputs))[: batches * _BATCH].split(_BATCH):
                optimizer.zero_grad()
                pictures = self.augment(inputs[batch], torch.default_generator)
                with precision():
                    logits = model(pictures)
                self.loss(logits.float(), targets[batch]).backward()
                optimizer.step()
                schedule.step()
        laid_out(memory_format=torch.contiguous_format)


def folder_of_data() -> Path:
    """The folder that CIFAR10_DIR names. Raises `ExperimentError` when it is not set or not there."""
    name = os.environ.get("CIFAR10_DIR")
    if not name:
        raise ExperimentError("set CIFAR10_DIR to the folder of cifar10_jpeg.npz, e.g. CIFAR10_DIR=data autocompress ...")
    return Path(name).resolve()


def required(name: str) -> Path:
    """A file of that folder. Raises `ExperimentError` when it is missing."""
    path = folder_of_data() / name
    if not path.is_file():
        raise ExperimentError(f"no {name} in {path.parent}; CIFAR10_DIR must name the folder that holds it")
    return path


@cache
def pictures(of: Literal["train", "test"]) -> tuple[Array, Array]:
    """All pictures of a half of the file, shape (n, 3, 32, 32), normalised, and their classes (n,), in a fixed random order."""
    with np.load(required("cifar10_jpeg.npz")) as arrays:
        images, labels = arrays[f"{of}_x"], arrays[f"{of}_y"]
    order = np.random.default_rng(0).permutation(len(images))
    normalised = (images[order].astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), labels[order].astype(np.int64)
