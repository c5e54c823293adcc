"""Sound networks that do something unusual: none of it keeps them from being exported, compared and compressed."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.baseline import check_parity
from autocompress.compress import compress
from autocompress.lane import Lane
from autocompress.measure import Here
from autocompress.nested import Nested
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import runtime_of
from autocompress.target import Target
from autocompress.trial import _output_gap

RUNTIMES = pytest.mark.parametrize("target", [Target(), Target(runtime="torch")], ids=lambda target: target.runtime)


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden(x)))
        return logits


class ChangesItsInput(Unusual):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.logits(x)


class GivesTruthValues(Unusual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return logits, logits > 0


class NamesItsOnlyOutput(Unusual):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"output": self.logits(x)}


class NamesItsInputsShortly(Unusual):
    def forward(self, t0: Tensor, t1: Tensor, w0: Tensor, p0: Tensor) -> dict[str, Tensor]:
        return {"t2": self.logits(t0 + t1), "w1": self.logits(w0 + p0)}


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


SHORT = {name: drawn(64, seed) for seed, name in enumerate(("t0", "t1", "w0", "p0"))}
NETWORKS: list[tuple[nn.Module, Nested]] = [
    (ChangesItsInput(), drawn(64)),
    (GivesTruthValues(), drawn(64)),
    (NamesItsOnlyOutput(), drawn(64)),
    (NamesItsInputsShortly(), SHORT),
]


@RUNTIMES
@pytest.mark.parametrize(("model", "inputs"), NETWORKS, ids=lambda given: type(given).__name__)
def test_it_is_exported_and_compared(model: nn.Module, inputs: Nested, target: Target) -> None:
    before = nested.each(Tensor.clone, inputs)
    layers = dict.fromkeys(("hidden", "head"), LayerPolicy(weight_bits=3))
    student = compress(model, Policy(layers=layers), inputs)
    for network in (model, student):
        example = nested.take(inputs, slice(8))
        check_parity(network, runtime_of(target).export(network, example), example, Here(target))
    assert all(map(torch.equal, nested.arrays(inputs), nested.arrays(before)))


@RUNTIMES
def test_a_single_output_keeps_its_name(target: Target) -> None:
    model, inputs = NamesItsOnlyOutput(), drawn(8)
    outputs = runtime_of(target).load(runtime_of(target).export(model, inputs), target)(inputs.numpy())
    assert isinstance(outputs, dict)
    assert list(outputs) == ["output"]


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_outputs_that_are_no_floats_are_compared_as_numbers(kind: Any) -> None:
    one, other = np.array([[0], [1], [1], [0]], kind), np.array([[0], [1], [0], [1]], kind)
    assert _output_gap(one, one, one) == 0
    assert _output_gap(one, other, other) == pytest.approx(2**0.5)


def test_a_user_without_a_name_has_a_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    with Lane().exclusive():
        pass
