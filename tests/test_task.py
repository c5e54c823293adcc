"""How far outputs are from a reference."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress.task import Array, Split, Task
from autocompress.testing import ToyTask


class Regression(Task):
    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(2, 1)

    def data(self, split: Split) -> tuple[Array, Array]:
        return np.zeros((4, 2), dtype=np.float32), np.zeros((4, 1), dtype=np.float32)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def score(self, outputs: Array, targets: Array) -> float:
        return 1.0


def test_regression_by_squares_over_the_variance() -> None:
    reference = torch.tensor([[0.0], [2.0], [4.0], [6.0]])  # variance 5
    assert float(Regression().divergence(reference + 2, reference)) == pytest.approx(4 / 5)
    assert float(Regression().divergence(reference, reference)) == 0
    assert float(Regression().divergence(10 * (reference + 2), 10 * reference)) == pytest.approx(4 / 5), "in no unit"


def test_a_constant_reference_divides_by_no_zero() -> None:
    reference = torch.ones(4, 1)
    assert float(Regression().divergence(reference, reference)) == 0
    assert float(Regression().divergence(reference + 1, reference)) > 1e9


def test_classification_by_the_divergence_of_the_classes() -> None:
    reference = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # 3/4 and 1/4; 1/2 and 1/2
    outputs = torch.zeros(2, 2)
    expected = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    task = ToyTask()
    assert float(task.divergence(outputs, reference)) == pytest.approx(expected)
    assert float(task.divergence(reference, outputs)) != pytest.approx(expected), "it has a direction"
    assert float(task.divergence(outputs + 7, reference)) == pytest.approx(expected), "softmax forgets a constant"


def test_classification_over_many_places_is_a_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs, reference = torch.randn(2, 6, 5, 3, generator=draw).unbind()
    task = ToyTask()
    each = [
        task.divergence(ours[None], theirs[None])
        for ours, theirs in zip(outputs.view(-1, 3), reference.view(-1, 3), strict=True)
    ]
    assert float(task.divergence(outputs, reference)) == pytest.approx(float(torch.stack(each).mean()))


def test_close_outputs_have_a_small_divergence_and_none_below_zero() -> None:
    reference = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 5
    for step in (0.0, 1e-6, 1e-5, 1e-4):
        value = float(ToyTask().divergence(reference + step * torch.randn(64, 10), reference))
        assert 0 <= value + 1e-15 <= step**2 + 2e-15


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_give_no_finite_divergence(value: float) -> None:
    reference, outputs = torch.zeros(4, 3), torch.zeros(4, 3)
    outputs[1, 1] = value
    assert not math.isfinite(float(ToyTask().divergence(outputs, reference)))
    assert not math.isfinite(float(Regression().divergence(outputs, reference)))


def test_several_outputs_differ_by_the_mean_of_those_that_are_floats() -> None:
    reference = {"one": torch.tensor([[0.0], [2.0], [4.0], [6.0]]), "two": torch.tensor([0.0, 2.0]), "places": torch.arange(4)}
    outputs = {"one": reference["one"] + 2, "two": reference["two"], "places": torch.zeros(4)}
    assert float(Regression().divergence(outputs, reference)) == pytest.approx(4 / 5 / 2)
    assert float(Regression().distillation(outputs, reference, 4.0)) == pytest.approx(4 / 5 / 2), "without logits, the same"
    with pytest.raises(TypeError, match=r"needs a divergence\(\) of its own"):
        Regression().divergence(torch.arange(4), torch.arange(4))


def test_which_output_a_classification_goes_by() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    task = ToyTask()
    for outputs in ({"features": torch.zeros(2, 9), "logits": logits}, (logits, torch.zeros(2, 9))):
        assert task.loss(outputs, labels) == task.loss(logits, labels)
        assert task.divergence(outputs, logits) == 0
    assert task.score({"logits": logits.numpy()}, labels.numpy()) == 0.5
    with pytest.raises(KeyError, match="outputs are a, b; a ClassificationTask needs one called 'logits'"):
        task.loss({"a": logits, "b": logits}, labels)


def test_labels_of_tokens_and_none_for_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=draw, requires_grad=True)
    labels = torch.randint(0, 5, (3, 4), generator=draw)
    padded = labels.clone()
    padded[:, 2:] = -1
    task = ToyTask()
    assert torch.allclose(task.loss(logits, padded), task.loss(logits[:, :2], labels[:, :2]))
    arrays = logits.detach().numpy()
    assert task.score(arrays, padded.numpy()) == task.score(arrays[:, :2], labels[:, :2].numpy())
    low, high = task.interval(arrays, padded.numpy())
    assert low <= task.score(arrays, padded.numpy()) <= high
