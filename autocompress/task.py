"""The few functions a user brings: a model, its data, and how good an output is."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor, nn

Split = Literal["train", "validation", "test"]
Array = NDArray[Any]


class Task(ABC):
    """What is to be learned, and by which network.

    A subclass gives `model`, `data`, `loss` and `score`; `train` only when `model()` is not trained yet. All of it must
    be deterministic: workers call it again on other machines. The search sees `train` and `validation`; `test` is read
    once, at the end.
    """

    score_range: tuple[float, float] = (0.0, 1.0)
    divergence_unit: str = "mean squared difference of the outputs, as a share of their variance"

    @abstractmethod
    def model(self) -> nn.Module:
        """The network: trained already, or untrained and then trained once by `train`. Takes a batch, gives the outputs."""

    @abstractmethod
    def data(self, split: Split) -> tuple[Array, Array]:
        """Inputs of shape (n, ...) as the model takes them (float32) and targets of shape (n, ...)."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The training loss of one batch: a scalar tensor."""

    @abstractmethod
    def score(self, outputs: Array, targets: Array) -> float:
        """How good the outputs of a whole split are, in `score_range`, higher is better. Recorded as ``accuracy``."""

    def interval(self, outputs: Array, targets: Array) -> tuple[float, float]:
        """The 95 % confidence interval of `score`: by default the percentiles of 500 bootstrap resamples (Efron, 1979)."""
        draw = np.random.default_rng(0)
        picks = (draw.integers(0, len(targets), len(targets)) for _ in range(500))
        scores = [self.score(outputs[pick], targets[pick]) for pick in picks]
        low, high = np.percentile(scores, [2.5, 97.5])
        return float(low), float(high)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """How far `outputs` (n, ...) are from the `reference` of the uncompressed model: a scalar tensor, 0 where they agree.

        In `divergence_unit`: by default the mean squared difference over the variance of the reference.
        """
        smallest = torch.finfo(reference.dtype).tiny
        return (outputs - reference).square().mean() / reference.var(correction=0).clamp_min(smallest)

    def train(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:  # noqa: B027  # optional, not abstract
        """Trains `model` in place on the `train` split. By default nothing: the model came trained."""

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Changes a training batch at random, shape kept. By default nothing."""
        return inputs


class ClassificationTask(Task):
    """Cross-entropy, top-1 accuracy and its Wilson interval for outputs of shape (n, classes) and integer targets (n,)."""

    divergence_unit = "KL of the outputs, nats"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The mean Kullback-Leibler divergence of the classes (last dimension) from those of the `reference`, in nats."""
        # In single precision the sum of a close pair comes out below 0.
        ours, theirs = (values.double().log_softmax(-1).flatten(0, -2) for values in (outputs, reference))
        return nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def score(self, outputs: Array, targets: Array) -> float:
        return float((outputs.argmax(axis=1) == targets).mean())

    def interval(self, outputs: Array, targets: Array) -> tuple[float, float]:
        right = int((outputs.argmax(axis=1) == targets).sum())
        interval = binomtest(right, len(targets)).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)
