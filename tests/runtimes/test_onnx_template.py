"""A graph that is used again is, byte for byte, what torch would have exported."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import onnx_graph, onnx_template
from autocompress.runtimes.onnxruntime import OnnxSession, export
from autocompress.target import Target
from autocompress.testing import ToyTask

NAMES = ("stem", "conv1", "conv2", "head")


class Exports(list[str]):
    """Counts the calls of torch's exporter."""


@pytest.fixture(autouse=True)
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    counted, exported = Exports(), onnx_graph._exported

    def counting(model: nn.Module, example: Tensor) -> Any:
        counted.append(type(model).__name__)
        return exported(model, example)

    monkeypatch.setattr(onnx_graph, "_exported", counting)
    monkeypatch.setattr(onnx_template, "_templates", type(onnx_template._templates)())
    return counted


def student_of(task: ToyTask, baseline: Baseline, data: Data, layer: LayerPolicy, **shares: float) -> nn.Module:
    policy = Policy(layers=dict.fromkeys(NAMES, layer), channel_sparsity=shares)
    return compress(baseline.model(task), policy, torch.tensor(data["train"][0]))


@pytest.mark.parametrize("activation_bits", [8, None])
def test_other_weights_and_widths_need_no_second_export(
    activation_bits: Any, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, exports: Exports
) -> None:
    example = torch.tensor(toy_data["train"][0][:4])
    whole = LayerPolicy(weight_bits=4, activation_bits=activation_bits)
    first = student_of(toy_task, toy_baseline, toy_data, whole)
    others = [
        student_of(toy_task, toy_baseline, toy_data, LayerPolicy(weight_bits=3, activation_bits=activation_bits)),
        student_of(toy_task, toy_baseline, toy_data, whole, conv1=0.5),
    ]
    export(first, example)
    same_shapes, cut = (export(student, example) for student in others)
    assert len(exports) == 1
    for student, file in zip(others, (same_shapes, cut), strict=True):
        onnx_template._templates.clear()
        assert export(student, example) == file


@pytest.mark.parametrize("activation_bits", [8, None])
def test_convolutions_of_all_widths_and_of_floats_have_one_graph(
    activation_bits: Any, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, exports: Exports
) -> None:
    """A convolution is exported as one of floats; only that codes become floats at load shows in a graph of integers."""
    example = torch.tensor(toy_data["train"][0][:4])
    head = {"head": LayerPolicy(weight_bits=8, activation_bits=activation_bits)}
    widths: list[dict[str, int | None]] = [
        {"stem": 4, "conv1": 4, "conv2": 4},
        {"stem": 3, "conv1": 2, "conv2": 8} if activation_bits else {"stem": 3, "conv1": None, "conv2": 8},
        {"stem": 6, "conv1": 5, "conv2": 7} if activation_bits else {"stem": None, "conv1": None, "conv2": None},
    ]
    students, files = [], []
    for bits in widths:
        layers = {
            name: LayerPolicy(weight_bits=width, activation_bits=None if width is None else activation_bits)
            for name, width in bits.items()
        }
        policy = Policy(layers=layers | head)
        students.append(compress(toy_baseline.model(toy_task), policy, torch.tensor(toy_data["train"][0])))
        files.append(export(students[-1], example))
    assert len(exports) == 1
    for student, file in zip(students, files, strict=True):
        onnx_template._templates.clear()
        assert export(student, example) == file


@pytest.mark.parametrize(("flatten", "graphs"), [(nn.Flatten(), 1), (nn.Flatten(2), 2)])
def test_a_row_may_have_any_length_but_no_other_shape(flatten: nn.Module, graphs: int, exports: Exports) -> None:
    """What makes a row of each example holds no number of channels; another Reshape does, and its graph is not used."""

    class Network(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv, self.pool, self.flatten = nn.Conv2d(1, channels, 3), nn.MaxPool2d(2), flatten
            self.head = nn.Linear(9 * channels if graphs == 1 else 9, 3)

        def forward(self, images: Tensor) -> Tensor:
            rows = self.flatten(self.pool(self.conv(images)))
            out: Tensor = self.head(rows if graphs == 1 else rows.mean(1))
            return out

    example = torch.randn(4, 1, 8, 8)
    for channels in (4, 6, 4):
        model = Network(channels).eval()
        ours = OnnxSession(export(model, example), Target())(example.numpy())
        np.testing.assert_allclose(ours, model(example).detach(), atol=1e-5)
    assert len(exports) == graphs


def test_settings_count(exports: Exports) -> None:
    example = torch.randn(4, 1, 8, 8)
    for padding in (0, 1, 0):
        conv = nn.Conv2d(1, 4, 3, padding=padding)
        export(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval(), example)
    assert len(exports) == 2


def test_a_number_made_of_a_width_is_none_of_another_width(exports: Exports) -> None:
    class Scaled(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, channels, 3), nn.Linear(channels, 3)

        def forward(self, images: Tensor) -> Tensor:
            x = torch.relu(self.conv(images)).mean((2, 3))
            out: Tensor = self.head(x * x.shape[1] ** -0.5)
            return out

    example = torch.randn(4, 1, 8, 8)
    for channels in (16, 8):
        model = Scaled(channels).eval()
        ours = OnnxSession(export(model, example), Target())(example.numpy())
        np.testing.assert_allclose(ours, model(example).detach(), atol=1e-5)
    assert len(exports) == 2


def test_weights_in_another_form_are_no_constant(exports: Exports) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, rows: Tensor) -> Tensor:
            first = torch.relu(self.linear(rows)).mean(1)
            out: Tensor = self.head(first + torch.relu(self.linear(rows.mean(1))))
            return out

    example = torch.randn(4, 5, 8)
    for _ in range(2):
        model = Twice().eval()
        ours = OnnxSession(export(model, example), Target())(example.numpy())
        np.testing.assert_allclose(ours, model(example).detach(), atol=1e-5)
    assert exports


def test_images_of_another_size_and_other_classes_have_a_graph_of_their_own(exports: Exports) -> None:
    def network(classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)).eval()

    for side, classes in ((8, 3), (16, 3), (16, 5)):
        example = torch.randn(4, 1, side, side)
        session = OnnxSession(export(network(classes), example), Target())
        assert session(example.numpy()).shape == (4, classes)
    assert len(exports) == 3


def test_scalars_that_were_equal_by_chance_are_told_apart(exports: Exports) -> None:
    """torch stores equal constants once; what is exported later has them different."""

    class Gained(nn.Module):
        gain: Tensor

        def __init__(self, gain: float) -> None:
            super().__init__()
            self.register_buffer("gain", torch.tensor(gain))

        def forward(self, values: Tensor) -> Tensor:
            return values * self.gain

    class Leaf(nn.Module):
        def __init__(self, first: float, second: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.one, self.other = nn.Conv2d(1, 2, 3), Gained(first), Gained(second)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.other(torch.relu(self.one(self.conv(images)))).flatten(1)
            return result

    example = torch.randn(4, 1, 8, 8)
    files = [export(Leaf(*gains).eval(), example) for gains in ((2.0, 2.0), (2.0, 3.0), (2.0, 2.0))]
    assert files[0] == files[2] != files[1]
    assert exports


class Tokens(nn.Module):
    """A class token before the rows, and places added to them; with `made`, they are multiplied by a number first."""

    def __init__(self, seed: int, *, made: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.made = made
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(17, 8))
        self.linear, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(rows.shape[0], -1, -1), rows], 1)
        x = x + (self.places * self.places.mean() if self.made else self.places)
        out: Tensor = self.head(torch.relu(self.linear(x)).mean(1))
        return out


@pytest.mark.parametrize(("made", "graphs"), [(False, 1), (True, 3)])
def test_a_network_may_add_tensors_of_its_own_but_make_nothing_of_them_alone(made: bool, graphs: int, exports: Exports) -> None:
    example = torch.randn(4, 16, 8)
    for seed in range(3):
        model = Tokens(seed, made=made).eval()
        ours = OnnxSession(export(model, example), Target())(example.numpy())
        np.testing.assert_allclose(ours, model(example).detach(), atol=1e-5)
    assert len(exports) == graphs
    if graphs == 1:
        file = export(model, example)
        onnx_template._templates.clear()
        assert export(model, example) == file
