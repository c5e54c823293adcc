"""What is left is refitted: a repaired student is nearer to the uncompressed network, and nothing else has changed."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.compress.calibrate import NormStatistics
from autocompress.policy import LayerPolicy, Policy
from autocompress.student import StudentLayer
from autocompress.testing import ToyTask

NAMES = ("stem", "conv1", "conv2", "head")


@pytest.mark.parametrize(
    "policy",
    [
        Policy(layers=dict.fromkeys(NAMES, LayerPolicy(weight_bits=3))),
        Policy(layers=dict.fromkeys(NAMES, LayerPolicy(weight_sparsity=0.7))),
        Policy(channel_sparsity={"conv1": 0.5, "stem": 0.25}),
        Policy(layers=dict.fromkeys(NAMES, LayerPolicy(weight_bits=2, activation_bits=8)), channel_sparsity={"conv1": 0.5}),
    ],
    ids=["bits", "zeros", "channels", "all"],
)
def test_repair_brings_the_outputs_nearer_on_other_examples(
    policy: Policy, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    model, calibration = toy_baseline.model(toy_task), torch.tensor(toy_data["train"][0])
    others = torch.tensor(toy_data["validation"][0])
    gaps = []
    for repair in (True, False):
        student = compress(model, policy.model_copy(update={"repair": repair}), calibration)
        with torch.no_grad():
            gaps.append(float(toy_task.divergence(student(others), model(others))))
    assert gaps[0] < 0.8 * gaps[1]


def test_groups_of_inputs_are_repaired_on_their_own_grids() -> None:
    """Half of the inputs are small and have large weights: one scale an output is too coarse for the other half."""
    torch.manual_seed(0)
    linear, mixed = nn.Linear(70, 20), torch.randn(8, 70)
    with torch.no_grad():
        linear.weight[:, 32:64] *= 20
        mixed[:, 32:64] /= 20
    model = nn.Sequential(linear).eval()
    inputs, others = (torch.randn(count, 8) @ mixed + 0.01 * torch.randn(count, 70) for count in (2048, 512))
    gaps = {}
    for size, repair in ((None, True), (32, False), (32, True)):
        how = LayerPolicy(weight_bits=3, weight_sparsity=0.2, group_size=size)
        student = compress(model, Policy(layers={"0": how}, repair=repair), inputs)
        layer = student.get_submodule("0")
        assert isinstance(layer, StudentLayer)
        assert layer.codes()[0].abs().max() <= 3
        with torch.no_grad():
            gaps[size, repair] = float((student(others) - model(others)).square().mean())
    assert gaps[32, True] < 0.5 * gaps[32, False]
    assert gaps[32, True] < 0.2 * gaps[None, True]


def test_masks_and_grids_hold(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    how = LayerPolicy(weight_bits=3, weight_sparsity=0.5)
    student = compress(toy_baseline.model(toy_task), Policy(layers={"conv1": how}), torch.tensor(toy_data["train"][0]))
    layer = student.get_submodule("conv1")
    assert isinstance(layer, StudentLayer)
    codes, _ = layer.codes()
    assert (codes == 0).float().mean() >= 0.5
    assert codes.abs().max() <= 3


def test_a_norm_whose_inputs_have_not_changed_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.1
    before = norm.running_mean.clone(), norm.running_var.clone()
    inputs = torch.randn(16, 4, 5, 5)
    NormStatistics.of(norm, inputs).carry_over(norm, inputs, slice(None))
    assert torch.allclose(norm.running_mean, before[0], atol=1e-5)
    assert torch.allclose(norm.running_var, before[1], rtol=1e-4)


def test_moments_are_those_of_the_channels() -> None:
    torch.manual_seed(0)
    for inputs in (torch.randn(16, 4, 5, 5) * 3 + 2, torch.randn(64, 4) - 5, torch.randn(8, 4, 6)):
        found = NormStatistics.of(nn.BatchNorm2d(4), inputs)
        across = [dimension for dimension in range(inputs.dim()) if dimension != 1]
        assert torch.allclose(found.mean, inputs.mean(across), atol=1e-5)
        assert torch.allclose(found.var, inputs.var(across, correction=0), rtol=1e-4)


def test_a_channel_that_comes_alive_is_not_blown_up() -> None:
    """It gave nothing before, so that its running variance is as good as zero."""
    norm = nn.BatchNorm2d(1).eval()
    norm.running_mean, norm.running_var = torch.zeros(1), torch.tensor([1e-9])
    alive = torch.randn(16, 1, 8, 8) * 0.03
    NormStatistics.of(norm, torch.zeros_like(alive)).carry_over(norm, alive, slice(None))
    assert float(norm(alive).std()) < 1.5


class Gate(nn.Module):
    """A linear layer of a vector, and one of rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Parameter(torch.randn(12))
        self.gate, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.head(rows * torch.sigmoid(self.gate(self.query)))
        return out


def test_a_layer_of_a_vector_is_compressed_like_any_other() -> None:
    inputs = torch.randn(64, 12)
    student = compress(Gate().eval(), Policy(layers={"gate": LayerPolicy(weight_bits=4)}), inputs)
    assert bool(student(inputs).isfinite().all())


def test_a_frozen_bias_stays() -> None:
    model = Gate().eval()
    assert model.head.bias is not None
    model.head.bias.requires_grad_(False)
    student = compress(model, Policy(layers={"head": LayerPolicy(weight_bits=2)}), torch.randn(64, 12))
    layer = student.get_submodule("head")
    assert isinstance(layer, StudentLayer)
    assert torch.equal(layer.layer.bias, model.head.bias)  # type: ignore[arg-type]
