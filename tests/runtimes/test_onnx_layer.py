"""A file of one layer does what the layer does, in the kernels in which a whole network runs it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.compress import compress
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import runtime_of
from autocompress.runtimes.onnx_layer import layer_file
from autocompress.runtimes.onnxruntime import export
from autocompress.runtimes.single import LayerShape, Manner
from autocompress.student import rounded_by_its_range
from autocompress.target import Target
from tests.runtimes.test_onnxruntime import optimised

SHAPES = {
    "3x3": LayerShape("conv2d", 16, 24, size=(9, 7), kernel=(3, 3), padding=(1, 1, 1, 1), batch=2),
    "first": LayerShape("conv2d", 3, 16, size=(8, 8), kernel=(3, 3), padding=(1, 1, 1, 1)),
    "strided": LayerShape("conv2d", 16, 16, size=(8, 8), kernel=(3, 3), stride=(2, 1), padding=(0, 1, 1, 0)),
    "dilated": LayerShape("conv2d", 16, 8, size=(9, 9), kernel=(3, 3), dilation=(2, 2)),
    "pointwise, no bias": LayerShape("conv2d", 16, 32, size=(4, 4), bias=False),
    "depthwise": LayerShape("conv2d", 16, 16, size=(8, 8), kernel=(3, 3), padding=(1, 1, 1, 1), groups=16),
    "grouped": LayerShape("conv2d", 16, 32, size=(8, 8), kernel=(3, 3), groups=2),
    "linear": LayerShape("linear", 40, 10, size=(1,)),
    "linear on rows": LayerShape("linear", 40, 12, size=(5,), batch=3),
}
SEVERAL = SHAPES["linear on rows"]
OF_CODES = {name: shape for name, shape in SHAPES.items() if shape is not SEVERAL}
ROUNDED_STEP = 0.05


def stored(content: bytes) -> dict[str, Tensor]:
    """What the file stores, by name: w the weight, c the bias."""
    tensors = onnx.load_from_string(content).graph.initializer
    return {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in tensors}


def computed(shape: LayerShape, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if shape.kind == "linear":
        return nn.functional.linear(inputs, weight, bias).relu()
    top, left, bottom, right = shape.padding
    padded = nn.functional.pad(inputs, (left, right, top, bottom))
    outputs = nn.functional.conv2d(padded, weight, bias, stride=shape.stride, dilation=shape.dilation, groups=shape.groups)
    return outputs.relu()


@pytest.mark.parametrize("shape", OF_CODES.values(), ids=OF_CODES)
def test_integers_are_fused_and_nothing_else_is_executed(shape: LayerShape, tmp_path: Path) -> None:
    content, _ = layer_file(shape, "integer")
    assert optimised(content, tmp_path) == ["QLinearConv" if shape.kind == "conv2d" else "QGemm"]


def test_a_linear_layer_of_several_vectors_is_timed_as_it_is_exported(tmp_path: Path) -> None:
    content, inputs = layer_file(SEVERAL, "integer")
    tensors = stored(content)
    given = (torch.tensor(inputs) / ROUNDED_STEP).round().clamp(-128, 127) * ROUNDED_STEP
    expected = computed(SEVERAL, given, tensors["w"].T.float() * ROUNDED_STEP, tensors["c"])
    np.testing.assert_allclose(runtime_of(Target()).load(content, Target())(inputs), expected.numpy(), atol=1e-4)
    block = nn.Sequential(nn.LayerNorm(SEVERAL.inputs), nn.Linear(SEVERAL.inputs, SEVERAL.outputs), nn.Tanh())
    policy = Policy(layers={"1": LayerPolicy(weight_bits=7, activation_bits=8)})
    student = compress(block, policy, torch.tensor(inputs))
    manners: tuple[tuple[Manner, nn.Module], ...] = (("integer", student), ("float", block))
    for manner, network in manners:
        file, _ = layer_file(SEVERAL, manner)
        whole = optimised(export(network, torch.tensor(inputs)), tmp_path)
        assert whole == ["LayerNormalization", *optimised(file, tmp_path)[:-1], "Tanh"]


@pytest.mark.parametrize("shape", OF_CODES.values(), ids=OF_CODES)
def test_integer_outputs_are_those_of_the_layer(shape: LayerShape) -> None:
    content, inputs = layer_file(shape, "integer")
    got = runtime_of(Target()).load(content, Target())(inputs)
    tensors = stored(content)
    given = torch.tensor(inputs).float() * ROUNDED_STEP
    if shape.kind == "conv2d":
        given = given.permute(0, 3, 1, 2)  # it takes and gives channels last
    bias = tensors.get("c")
    if bias is not None and shape.kind == "linear":
        bias = bias * ROUNDED_STEP**2
    expected = computed(shape, given, tensors["w"].float() * ROUNDED_STEP, bias).round().clamp(0, 255)
    if shape.kind == "conv2d":
        expected = expected.permute(0, 2, 3, 1)
    assert got.shape == tuple(expected.shape)
    assert np.abs(got.astype(int) - expected.numpy().astype(int)).max() <= 1  # where a value lies between two steps
    assert expected.float().std() > 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("manner", ["float", "codes"])
def test_float_outputs_are_those_of_the_layer(manner: Manner, shape: LayerShape, tmp_path: Path) -> None:
    content, inputs = layer_file(shape, manner)
    tensors = stored(content)
    weight = tensors["w"].float() * (ROUNDED_STEP if manner == "codes" else 1)
    expected = computed(shape, torch.tensor(inputs), weight, tensors.get("c"))
    got = runtime_of(Target()).load(content, Target())(inputs)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(optimised(content, tmp_path))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES.values() if shape.kind == "linear"], ids=str)
def test_a_scale_for_all_inputs_as_a_group_is_the_same_layer(shape: LayerShape, tmp_path: Path) -> None:
    content, inputs = layer_file(shape, "groups")
    same, _ = layer_file(shape, "codes")
    load = runtime_of(Target()).load
    assert np.array_equal(load(content, Target())(inputs), load(same, Target())(inputs))
    assert optimised(content, tmp_path) == optimised(same, tmp_path)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES.values() if shape.kind == "linear"], ids=str)
def test_a_layer_with_dynamic_ranges_is_one_kernel(shape: LayerShape, tmp_path: Path) -> None:
    content, inputs = layer_file(shape, "dynamic")
    tensors = stored(content)
    given = rounded_by_its_range(torch.tensor(inputs))
    expected = computed(shape, given, tensors["w"].T.float() * ROUNDED_STEP, tensors.get("c"))
    got = runtime_of(Target()).load(content, Target())(inputs)
    np.testing.assert_allclose(got, expected.numpy(), atol=0.01 * float(expected.std()))
    assert optimised(content, tmp_path) == ["DynamicQuantizeMatMul", "Relu"]


def test_other_widths_are_counted_as_the_weight_counts_them() -> None:
    assert SHAPES["3x3"].at(8, 16).weight_shape == (16, 8, 3, 3)
    assert SHAPES["linear"].at(20, 10).weight_shape == (10, 20)
    depthwise = SHAPES["depthwise"].at(1, 8)
    assert (depthwise.weight_shape, depthwise.groups, depthwise.inputs) == ((8, 1, 3, 3), 8, 8)
    grouped = SHAPES["grouped"].at(4, 16)
    assert (grouped.weight_shape, grouped.groups, grouped.inputs) == ((16, 4, 3, 3), 2, 8)


def test_the_same_layer_is_the_same_file() -> None:
    assert layer_file(SHAPES["3x3"], "integer")[0] == layer_file(SHAPES["3x3"], "integer")[0]
