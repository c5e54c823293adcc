"""The few functions a user brings: a model, its data, and how good an output is."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress import nested
from autocompress.objective import Scoring

Split = Literal["train", "validation", "test"]
Array = NDArray[Any]


class Task(ABC):
    """What is to be learned, and by which network.

    A subclass gives `model`, `data`, `loss` and `score`; `train` only when `model()` is not trained yet. All of it must
    be deterministic: workers call it again on other machines. The search sees `train` and `validation`; `test` is read
    once, at the end.
    """

    score_name: str = "score"
    score_range: tuple[float, float] = (0.0, 1.0)
    lower_is_better: bool = False
    divergence_unit: str = "mean squared difference of the outputs, as a share of their variance"

    @abstractmethod
    def model(self) -> nn.Module:
        """The network: trained already, or untrained and then trained once by `train`. Takes a batch, gives the outputs."""

    @abstractmethod
    def data(self, split: Split) -> tuple[Any, Any]:
        """Inputs of shape (n, ...) as the model takes them, and targets of shape (n, ...).

        Either is an array, a tuple of arrays, or a dictionary of them. The model is called with a tuple as its arguments and
        with a dictionary as its keywords.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The training loss of one batch: a scalar tensor. `outputs` are what the model gives: a tensor, or several."""

    @abstractmethod
    def score(self, outputs: Any, targets: Any) -> float:
        """How good the outputs of a whole split are, in `score_range`, or how bad where `lower_is_better`.

        Recorded as ``accuracy``, shown as `score_name`; in percent where the range is 0 to 1.
        """

    @property
    def scoring(self) -> Scoring:
        """What the score is called, which way is better, and whether it is a share."""
        low, high = self.score_range
        return Scoring(name=self.score_name, goal="min" if self.lower_is_better else "max", share=(low, high) == (0.0, 1.0))

    def interval(self, outputs: Any, targets: Any) -> tuple[float, float]:
        """The 95 % confidence interval of `score`: by default the percentiles of 500 bootstrap resamples (Efron, 1979)."""
        draw, examples = np.random.default_rng(0), nested.count(targets)
        picks = (draw.integers(0, examples, examples) for _ in range(500))
        scores = [self.score(nested.take(outputs, pick), nested.take(targets, pick)) for pick in picks]
        low, high = np.percentile(scores, [2.5, 97.5])
        return float(low), float(high)

    def divergence(self, outputs: Any, reference: Any) -> Tensor:
        """How far `outputs` are from the `reference` of the uncompressed model: a scalar tensor, 0 where they agree.

        In `divergence_unit`: by default the mean squared difference over the variance of the reference, the mean of all
        parts that are floats.
        """
        pairs = zip(nested.arrays(outputs), nested.arrays(reference), strict=True)
        gaps = [_relative_gap(ours, theirs) for ours, theirs in pairs if theirs.is_floating_point()]
        if not gaps:
            raise TypeError("the model gives no floats; the task needs a divergence() of its own")
        return torch.stack(gaps).mean()

    def distillation(self, outputs: Any, reference: Any, temperature: float) -> Tensor:
        """What a student loses by not following the uncompressed model, `reference`: a scalar tensor.

        By default the divergence, which knows no `temperature`.
        """
        return self.divergence(outputs, reference)

    def train(self, model: nn.Module, inputs: Any, targets: Any) -> None:  # noqa: B027  # optional, not abstract
        """Trains `model` in place on the `train` split. By default nothing: the model came trained."""

    def augment(self, inputs: Any, generator: torch.Generator) -> Any:
        """Changes a training batch at random, shapes kept. By default nothing."""
        return inputs


class ClassificationTask(Task):
    """Cross-entropy, top-1 accuracy and its Wilson interval for outputs (n, ..., classes) and integer targets (n, ...).

    Of a model with several outputs, those called ``logits`` count, or the first of a tuple. Targets below 0 do not count.
    """

    score_name = "accuracy"
    divergence_unit = "KL of the outputs, nats"

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        logits = _logits(outputs)
        wanted = targets.where(targets >= 0, _IGNORED).flatten()
        return nn.functional.cross_entropy(logits.flatten(0, -2), wanted, ignore_index=_IGNORED)

    def divergence(self, outputs: Any, reference: Any) -> Tensor:
        """The mean Kullback-Leibler divergence of the classes (last dimension) from those of the `reference`, in nats."""
        # In single precision the sum of a close pair comes out below 0.
        ours, theirs = (_logits(values).double().log_softmax(-1).flatten(0, -2) for values in (outputs, reference))
        return nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def distillation(self, outputs: Any, reference: Any, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of the softened classes, times the temperature squared (Hinton et al., 2015)."""
        ours, theirs = (
            nn.functional.log_softmax(_logits(values) / temperature, dim=-1).flatten(0, -2) for values in (outputs, reference)
        )
        return nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2

    def score(self, outputs: Any, targets: Any) -> float:
        return float(_right(outputs, targets).mean())

    def interval(self, outputs: Any, targets: Any) -> tuple[float, float]:
        from scipy.stats import binomtest  # half a second, in every process that loads an experiment

        right = _right(outputs, targets)
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


_IGNORED = -100


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        if "logits" not in outputs:
            raise KeyError(f"the model's outputs are {', '.join(outputs)}; a ClassificationTask needs one called 'logits'")
        return outputs["logits"]
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _right(outputs: Any, targets: Array) -> NDArray[np.bool_]:
    """Whether the likeliest class is the target's, of each target that counts."""
    right: NDArray[np.bool_] = (_logits(outputs).argmax(axis=-1) == targets)[targets >= 0]
    return right


def _relative_gap(outputs: Tensor, reference: Tensor) -> Tensor:
    smallest = torch.finfo(reference.dtype).tiny
    return (outputs - reference).square().mean() / reference.var(correction=0).clamp_min(smallest)
