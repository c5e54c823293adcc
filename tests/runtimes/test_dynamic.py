"""Linear layers whose inputs are rounded by the range of each batch: the file computes what the student does, in integers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compress import compress
from autocompress.errors import ExportError, SurgeryError
from autocompress.lane import Lane
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.profile.layers import uses
from autocompress.profile.single import layer_costs
from autocompress.runtimes import runtime_of
from autocompress.student import rounded_by_its_range
from autocompress.target import Target
from tests.runtimes.test_groups import CLASSES, INPUTS, examples, exported, trained
from tests.runtimes.test_onnxruntime import optimised

TARGET = Target()


def dynamic(bits: int, sparsity: float = 0.0) -> LayerPolicy:
    return LayerPolicy(weight_bits=bits, activation_bits=8, activation_range="dynamic", weight_sparsity=sparsity)


@pytest.mark.parametrize("how", [dynamic(bits) for bits in range(2, 8)] + [dynamic(4, 0.8)], ids=str)
def test_files_decide_as_students_do_in_one_kernel_a_layer(how: LayerPolicy, tmp_path: Path) -> None:
    inputs = examples(1000, 4)[0]
    file, student = exported(how, TARGET)
    for batch in (inputs, inputs[:1], inputs[1:4]):
        got = runtime_of(TARGET).load(file, TARGET)(batch.numpy())
        with torch.no_grad():
            expected = student(batch).numpy()
        # Where a value lies between two steps, it may be rounded to either.
        assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
        assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert Counter(optimised(file, tmp_path)) == {"DynamicQuantizeMatMul": 3, "Relu": 2}


@pytest.mark.parametrize("values", [torch.randn(50), torch.rand(50) + 3, -torch.rand(50), torch.zeros(50)], ids=str)
def test_values_are_rounded_to_steps_between_the_ends_of_the_batch_and_zero(values: Tensor) -> None:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = (high - low) / 255
    rounded = rounded_by_its_range(values)
    assert float((rounded - values).abs().max()) <= 0.51 * step + 1e-9
    assert float(rounded_by_its_range(torch.cat([values, torch.zeros(1)]))[-1]) == 0
    half = rounded_by_its_range(values.bfloat16())
    assert half.dtype is torch.bfloat16


def test_it_is_trained_through_the_rounding() -> None:
    student = compress(trained(), Policy(layers={"2": dynamic(4)}), examples(256, 2)[0])
    student(examples(16, 3)[0]).square().sum().backward()
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


def test_they_take_the_bytes_that_the_cost_table_tells() -> None:
    example = examples(2, 3)[0]
    found = uses(trained(), example, probe(trained(), example), TARGET)
    costs = {layer.name: layer for layer in layer_costs(trained(), found, TARGET, Lane())}
    widths = {"0": (INPUTS, 160), "2": (160, 136), "4": (136, CLASSES)}
    for bits in (2, 4, 7):
        hows = LayerPolicy(weight_bits=bits), dynamic(bits)
        told = [sum(costs[name].bytes(*width, how) for name, width in widths.items()) for how in hows]
        real = [len(exported(how, TARGET)[0]) for how in hows]
        # The names of values are longer in a larger graph.
        assert told[1] - told[0] == pytest.approx(real[1] - real[0], abs=20 * len(widths)), bits


class Twice(nn.Module):
    """A linear layer that is called twice, which has no range known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(40, 40)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.linear(5 * torch.relu(self.linear(rows)))
        return out


@pytest.mark.parametrize("rows", [torch.randn(64, 40), torch.randn(64, 5, 40)], ids=["vectors", "several an example"])
def test_a_layer_may_be_called_twice(rows: Tensor, tmp_path: Path) -> None:
    student = compress(Twice().eval(), Policy(layers={"linear": dynamic(6)}), rows)
    file = runtime_of(TARGET).export(student, rows[:4])
    got = runtime_of(TARGET).load(file, TARGET)(rows.numpy())
    expected = student(rows).detach().numpy()
    assert np.abs(got - expected).mean() < 0.001 * expected.std()
    assert Counter(optimised(file, tmp_path))["DynamicQuantizeMatMul"] == 2


def test_a_network_that_cannot_be_traced_has_them_too(tmp_path: Path) -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.head = nn.Linear(40, 32), nn.Linear(32, 4)

        def forward(self, rows: Tensor) -> Tensor:
            x = torch.relu(self.linear(rows))
            if x.shape[1] != int(x.shape[1]) + len(str(x.dim())) - 1:
                raise RuntimeError
            logits: Tensor = self.head(x)
            return logits

    rows = torch.randn(64, 40)
    student = compress(Choosy().eval(), Policy(layers={"linear": dynamic(6), "head": dynamic(6)}), rows)
    file = runtime_of(TARGET).export(student, rows[:4])
    got, expected = runtime_of(TARGET).load(file, TARGET)(rows.numpy()), student(rows).detach().numpy()
    assert np.abs(got - expected).mean() < 0.01 * expected.std()
    assert Counter(optimised(file, tmp_path)) == {"DynamicQuantizeMatMul": 2, "Relu": 1}


def test_beside_static_ranges() -> None:
    """Its inputs were rounded for another layer before it rounds them itself."""
    static = LayerPolicy(weight_bits=6, activation_bits=8)
    inputs = examples(1000, 4)[0]
    student = compress(trained(), Policy(layers={"0": static, "2": dynamic(6), "4": static}), examples(256, 2)[0])
    got = runtime_of(TARGET).load(runtime_of(TARGET).export(student, inputs[:4]), TARGET)(inputs.numpy())
    with torch.no_grad():
        expected = student(inputs).numpy()
    assert np.abs(got - expected).mean() < 0.02 * expected.std()
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.995


def test_where_it_cannot_be_it_is_refused() -> None:
    student = compress(trained(), Policy(layers={"2": dynamic(4)}), examples(64, 2)[0])
    with pytest.raises(ExportError, match="torch has no integer kernels here"):
        runtime_of(Target(runtime="torch")).export(student, examples(4, 3)[0])
    with pytest.raises(SurgeryError, match="layer '0' is a Conv2d: a dynamic activation_range is for linear layers"):
        compress(nn.Sequential(nn.Conv2d(1, 2, 3)), Policy(layers={"0": dynamic(4)}), torch.randn(4, 1, 8, 8))
