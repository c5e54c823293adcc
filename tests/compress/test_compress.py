"""Laws of compression: what a policy says is what the student is."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.distill import Teacher
from autocompress.errors import UnknownNameError
from autocompress.finetune import evaluate, finetune
from autocompress.lane import Lane
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.probe import cost
from autocompress.student import ActivationQuantizer, StudentLayer, best_scales, largest_code
from autocompress.testing import ToyTask

NAMES = ("stem", "conv1", "conv2", "head")


def everywhere(**settings: object) -> dict[str, LayerPolicy]:
    return {name: LayerPolicy.model_validate(settings) for name in NAMES}


def student_layer(model: torch.nn.Module, name: str) -> StudentLayer:
    layer = model.get_submodule(name)
    assert isinstance(layer, StudentLayer)
    return layer


@pytest.fixture(scope="module")
def calibration(toy_data: Data) -> torch.Tensor:
    return torch.tensor(toy_data["train"][0])


def test_the_empty_policy_changes_no_output(toy_task: ToyTask, toy_baseline: Baseline, calibration: torch.Tensor) -> None:
    model = toy_baseline.model(toy_task)
    assert torch.equal(compress(model, Policy(), calibration)(calibration), model(calibration))


def test_the_argument_is_left_untouched(toy_task: ToyTask, toy_baseline: Baseline, calibration: torch.Tensor) -> None:
    model = toy_baseline.model(toy_task)
    before = deepcopy(model.state_dict())
    policy = Policy(channel_sparsity={"conv1": 0.5}, layers=everywhere(weight_bits=3, activation_bits=8, weight_sparsity=0.4))
    compress(model, policy, calibration)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(isinstance(module, StudentLayer) for module in model.modules())


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_rounded_weight_has_so_many_levels(
    bits: int, toy_task: ToyTask, toy_baseline: Baseline, calibration: torch.Tensor
) -> None:
    student = compress(toy_baseline.model(toy_task), Policy(layers=everywhere(weight_bits=bits)), calibration)
    layer = student_layer(student, "conv1")
    codes, scale = layer.codes()
    assert int(codes.abs().max()) <= largest_code(bits)
    assert len(codes.unique()) > largest_code(bits)  # the grid is really used
    assert torch.allclose(layer.effective_weight(), codes * scale.view(-1, 1, 1, 1))


@given(sparsity=st.floats(0, 0.99))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_that_share_of_the_weights_is_zero(
    sparsity: float, toy_task: ToyTask, toy_baseline: Baseline, calibration: torch.Tensor
) -> None:
    student = compress(
        toy_baseline.model(toy_task), Policy(layers={"conv1": LayerPolicy(weight_sparsity=sparsity)}), calibration
    )
    weight = student_layer(student, "conv1").effective_weight()
    assert int((weight == 0).sum()) == int(sparsity * weight.numel())


def test_activations_are_rounded_where_integers_meet(
    toy_task: ToyTask, toy_baseline: Baseline, calibration: torch.Tensor
) -> None:
    student = compress(toy_baseline.model(toy_task), Policy(layers=everywhere(weight_bits=8, activation_bits=8)), calibration)
    quantizers = [module for module in student.modules() if isinstance(module, ActivationQuantizer)]
    # The input, stem, conv1, conv2 before the sum, and the sum; the logits stay float.
    assert len(quantizers) == 5
    assert all(not quantizer.observing and quantizer.high > quantizer.low for quantizer in quantizers)
    zero_points = [quantizer.grid()[1] for quantizer in quantizers]
    assert sum(point == 0 for point in zero_points) == 3  # after each ReLU; the input and conv2 are signed
    assert len(student(calibration[:3]).unique()) > 3


def test_a_layer_that_is_not_there(toy_task: ToyTask, toy_baseline: Baseline, calibration: torch.Tensor) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'conv1'"):
        compress(toy_baseline.model(toy_task), Policy(layers={"comv1": LayerPolicy(weight_bits=4)}), calibration)


def test_scales_minimise_the_squared_error() -> None:
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 6.0  # an outlier that a scale by the maximum would follow
    by_maximum = weight.abs().amax(1) / largest_code(3)

    def error(scale: torch.Tensor) -> torch.Tensor:
        step = scale[:, None]
        return ((weight / step).round().clamp(-3, 3) * step - weight).square().sum(1)

    assert bool((error(best_scales(weight, 3)) < error(by_maximum)).all())


def test_scales_of_a_channel_of_zeros_stay_positive() -> None:
    assert bool((best_scales(torch.zeros(3, 5), 4) > 0).all())


def test_learned_scales_get_the_gradient_of_the_rounding_error() -> None:
    layer = StudentLayer(torch.nn.Linear(64, 4), bits=4)
    assert layer.scale is not None
    goal = layer.layer.weight.detach() * 1.5
    for _ in range(200):
        layer.zero_grad()
        loss = (layer.effective_weight() - goal).square().sum()
        loss.backward()
        with torch.no_grad():
            assert layer.scale.grad is not None
            layer.scale.sub_(0.01 * layer.scale.grad)
    # With the weights fixed, only wider steps come nearer to a goal one and a half times as large.
    assert float(loss.detach()) < float((layer.layer.weight.detach() - goal).square().sum())


def test_masks_hold_and_scales_move_through_fine_tuning(
    toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, calibration: torch.Tensor
) -> None:
    policy = Policy(
        layers=everywhere(weight_bits=3, activation_bits=8, weight_sparsity=0.6),
        finetune=Finetune(steps=20, learning_rate=3e-3, batch_size=32),
        distill=Distill(share=0.6, hint_share=0.2),
    )
    model = toy_baseline.model(toy_task)
    student = compress(model, policy, calibration)
    layer = student_layer(student, "conv1")
    assert layer.mask is not None
    assert layer.scale is not None
    mask, scale, weight = layer.mask.clone(), layer.scale.detach().clone(), layer.weight.detach().clone()
    train, teacher = (calibration, torch.tensor(toy_data["train"][1])), Teacher(model, "head")
    judge = partial(evaluate, task=toy_task, data=toy_data["validation"], lane=Lane())
    shares = (0.25, 0.5, 0.75)
    rungs = list(finetune(student, policy, toy_task, teacher, train, judge, rungs=shares, seed=0, lane=Lane()))
    assert [rung.step for rung in rungs] == [0, 5, 10, 15, 20]
    assert not torch.equal(layer.weight, weight) or max(rungs, key=lambda rung: rung.accuracy).step == 0
    assert bool((layer.effective_weight()[~mask] == 0).all())
    assert not torch.equal(layer.scale, scale) or max(rungs, key=lambda rung: rung.accuracy).step == 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.0, 2.0)])
def test_activations_are_rounded_as_torch_does_it(low: float, high: float) -> None:
    quantizer = ActivationQuantizer()
    quantizer(torch.tensor([low, high]))
    quantizer.observing = False
    values = torch.linspace(low - 1, high + 1, 1000, requires_grad=True)
    ours = quantizer(values)
    (gradient,) = torch.autograd.grad(ours.sum(), values)
    scale, zero_point = quantizer.grid()
    theirs = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)
    (expected,) = torch.autograd.grad(theirs.sum(), values)
    # At a value exactly between two steps the two may take different ones.
    assert float((ours - theirs).detach().abs().max()) <= scale * 1.001
    assert float((ours != theirs).float().mean()) < 0.02
    assert float((gradient - expected).abs().sum()) <= 2  # at the two ends of the range


def test_a_users_parameter_called_scale_is_trained_like_any_other(toy_task: ToyTask, toy_data: Data) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(8, 4)
            self.scale = torch.nn.Parameter(torch.ones(1, 8))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.conv(images).mean((2, 3)) * self.scale)
            return logits

    inputs, targets = torch.tensor(toy_data["train"][0]), torch.tensor(toy_data["train"][1])
    layers = {"conv": LayerPolicy(weight_bits=4), "head": LayerPolicy(weight_bits=4)}
    for steps in range(1, 9):  # four steps once made the learning-rate schedule divide by zero
        policy = Policy(layers=layers, finetune=Finetune(steps=steps, batch_size=16))
        model = Scaled().eval()
        student = compress(model, policy, inputs)
        teacher, train = Teacher(model, "head"), (inputs, targets)
        judge = partial(evaluate, task=toy_task, data=toy_data["validation"], lane=Lane())
        rungs = list(finetune(student, policy, toy_task, teacher, train, judge, rungs=(0.5,), seed=0, lane=Lane()))
        assert rungs[-1].step == steps
    assert cost(student, inputs[:2]).params == 8 * 9 + 8 + 8 * 4 + 4 + 8


def test_a_layer_with_two_names_is_replaced_under_both(toy_data: Data) -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
            self.again = self.conv

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.again(self.conv(images))
            return out

    student = compress(Twice().eval(), Policy(layers={"conv": LayerPolicy(weight_bits=2)}), torch.tensor(toy_data["train"][0]))
    assert student.get_submodule("again") is student.get_submodule("conv")
    assert isinstance(student.get_submodule("again"), StudentLayer)


def test_a_users_module_keeps_its_name(toy_data: Data) -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.activation_0 = torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.activation_0(self.conv(images)).mean((2, 3))
            return out

    policy = Policy(layers={"conv": LayerPolicy(weight_bits=8, activation_bits=8)})
    student = compress(Named().eval(), policy, torch.tensor(toy_data["train"][0]))
    assert isinstance(student.get_submodule("activation_0"), torch.nn.Tanh)
