"""Linear layers with a scale for each group of inputs: right on every runtime, as small as foretold, free when they run."""

from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.compress import compress
from autocompress.errors import SurgeryError
from autocompress.lane import Lane
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.profile.layers import uses
from autocompress.profile.single import layer_costs
from autocompress.runtimes import runtime_of
from autocompress.runtimes.onnx_pack import pack
from autocompress.runtimes.onnx_slim import IR_VERSION, OPSET, scale_of_each_input
from autocompress.runtimes.openvino import SETTINGS
from autocompress.student import largest_code
from autocompress.target import Target
from tests.runtimes.test_onnx_pack import restored
from tests.runtimes.test_onnxruntime import optimised

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
RUNTIMES = ["onnxruntime", "torch", pytest.param("openvino", marks=needs_openvino)]
INPUTS, CLASSES = 200, 10  # in no group size without a rest
LINEAR = ("0", "2", "4")


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten clouds of points, which overlap a little."""
    places = 0.4 * torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return places[labels] + torch.randn(count, INPUTS, generator=draw), labels


@cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 160), nn.ReLU(), nn.Linear(160, 136), nn.ReLU(), nn.Linear(136, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, labels = examples(2000, 1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


def exported(how: LayerPolicy, target: Target) -> tuple[bytes, nn.Module]:
    student = compress(trained(), Policy(layers=dict.fromkeys(LINEAR, how)), examples(256, 2)[0])
    return runtime_of(target).export(student, examples(4, 3)[0]), student


@pytest.mark.parametrize("size", Target().menu.group_sizes)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_files_decide_as_students_do(runtime: str, size: int) -> None:
    target, inputs = Target(runtime=runtime), examples(1000, 4)[0]
    assert size in target.menu.group_sizes
    for bits, zeros in [*product(filter(None, target.menu.weight_bits), [0.0]), (3, 0.6)]:
        file, student = exported(LayerPolicy(weight_bits=bits, group_size=size, weight_sparsity=zeros), target)
        got = runtime_of(target).load(file, target)(inputs.numpy())
        with torch.no_grad():
            expected = student(inputs).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4 * float(np.abs(expected).max()))
        assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.995


def test_they_cost_nothing_when_they_run(tmp_path: Path) -> None:
    files = [exported(LayerPolicy(weight_bits=3, group_size=size), Target())[0] for size in (None, 32)]
    assert optimised(files[1], tmp_path) == optimised(files[0], tmp_path)


@needs_openvino
def test_openvino_restores_them_once() -> None:
    """It would rather keep codes of 8 bits, and multiply them by their scales at every run."""
    openvino: Any = pytest.importorskip("openvino")
    file, _ = exported(LayerPolicy(weight_bits=4, group_size=32), Target(runtime="openvino"))
    compiled = openvino.Core().compile_model(openvino.Core().read_model(file), "CPU", SETTINGS)
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [str(info["layerType"].value) for info in told]
    assert kinds.count("FullyConnected") == 3
    assert set(kinds) <= {"Input", "Const", "Reorder", "FullyConnected", "Output"}


def test_they_take_the_bytes_that_the_cost_table_tells() -> None:
    target, example = Target(), examples(2, 3)[0]
    found = uses(trained(), example, probe(trained(), example), target)
    costs = {layer.name: layer for layer in layer_costs(trained(), found, target, Lane())}
    widths = {"0": (INPUTS, 160), "2": (160, 136), "4": (136, CLASSES)}
    for bits, size in product((2, 4, 7), target.menu.group_sizes):
        hows = [LayerPolicy(weight_bits=bits, group_size=given) for given in (None, size)]
        told = [sum(costs[name].bytes(*width, how) for name, width in widths.items()) for how in hows]
        real = [len(exported(how, target)[0]) for how in hows]
        assert told[1] - told[0] == pytest.approx(real[1] - real[0], abs=40), (bits, size)


def test_between_integers_their_weights_are_not_rounded_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 64)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), linear, nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        linear.weight[:, :32] *= 30  # one scale would be far too coarse for the others
    integer = LayerPolicy(weight_bits=7, activation_bits=8)
    policy = Policy(layers={"0": integer, "3": LayerPolicy(weight_bits=4, group_size=32), "5": integer})
    inputs = torch.randn(256, 1, 10, 10)
    student = compress(model, policy, inputs)
    file = runtime_of(Target()).export(student, inputs[:4])
    got = runtime_of(Target()).load(file, Target())(inputs.numpy())
    with torch.no_grad():
        expected = student(inputs).numpy()
    assert np.abs(got - expected).mean() < 0.003 * expected.std()
    assert {"QLinearConv", "Gemm", "QGemm"} <= set(optimised(file, tmp_path))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_of_several_vectors_an_example(runtime: str) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 6)).eval(), torch.randn(16, 5, 40)
    student = compress(model, Policy(layers={"0": LayerPolicy(weight_bits=3, group_size=16)}), inputs)
    target = Target(runtime=runtime)
    got = runtime_of(target).load(runtime_of(target).export(student, inputs[:4]), target)(inputs.numpy())
    np.testing.assert_allclose(got, student(inputs).detach().numpy(), atol=1e-5)


def test_a_convolution_has_no_groups_of_inputs() -> None:
    policy = Policy(layers={"0": LayerPolicy(weight_bits=4, group_size=32)})
    with pytest.raises(SurgeryError, match="layer '0' is a Conv2d: group_size is for linear layers"):
        compress(nn.Sequential(nn.Conv2d(1, 2, 3)), policy, torch.randn(4, 1, 8, 8))


@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 40),
    group_size=st.integers(2, 17),
    bits=st.integers(2, 8),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
    lookup=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_codes_come_back_times_the_scale_of_their_group(
    outputs: int, inputs: int, group_size: int, bits: int, zeros: float, seed: int, lookup: bool
) -> None:
    draw = np.random.default_rng(seed)
    codes = draw.integers(-largest_code(bits), largest_code(bits) + 1, (outputs, inputs)).astype(np.int8)
    codes[draw.random(codes.shape) < zeros] = 0
    scale = draw.random((outputs, -(-inputs // group_size)), dtype=np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1]), ("y", None))]
    graph = helper.make_graph(
        [], "g", ends[:1], ends[1:], [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scale, "s")]
    )
    steps = scale_of_each_input(graph, "s", group_size, inputs)
    graph.node.append(helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Mul", ["f", steps], ["weight"]))
    graph.node.append(helper.make_node("Mul", ["weight", "x"], ["y"]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    assert np.array_equal(restored(pack(model, lookup=lookup)), codes * scale.repeat(group_size, 1)[:, :inputs])
