"""Packed weights: as small as promised, restored bit for bit, folded away when the file is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.runtimes.onnx_pack import bits_needed, forms, pack
from autocompress.runtimes.onnx_slim import IR_VERSION, OPSET
from autocompress.student import largest_code


def holder(weight: NDArray[np.generic]) -> onnx.ModelProto:
    """A graph that gives back its one weight, as floats, times the input."""
    nodes = [helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["f", "x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def restored(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values: NDArray[np.float32] = session.run(None, {"x": np.ones(1, dtype=np.float32)})[0]
    return values


def folded_nodes(model: onnx.ModelProto, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def codes_of(bits: int, shape: tuple[int, ...], zeros: float = 0.0) -> NDArray[np.int8]:
    draw = np.random.default_rng(0)
    largest = largest_code(bits)
    codes = draw.integers(-largest, largest + 1, shape).astype(np.int8)
    codes[draw.random(shape) < zeros] = 0
    codes.flat[0] = -largest  # every width is really needed
    return codes


@pytest.mark.parametrize("bits", range(2, 9))
def test_each_width_is_that_small_and_equal(bits: int, tmp_path: Path) -> None:
    codes = codes_of(bits, (64, 32, 3, 3))
    packed = pack(holder(codes))
    overhead = 700  # a dozen nodes
    assert len(packed.SerializeToString()) <= codes.size * bits / 8 + overhead
    assert np.array_equal(restored(packed), codes)
    assert folded_nodes(packed, tmp_path) == ["Mul"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_are_stored_as_one_bit(bits: int, tmp_path: Path) -> None:
    codes = codes_of(bits, (64, 32, 3, 3), zeros=0.9)
    packed = pack(holder(codes))
    values = int((codes != 0).sum())
    assert len(packed.SerializeToString()) <= codes.size / 8 + values * bits / 8 + 900
    assert np.array_equal(restored(packed), codes)
    assert folded_nodes(packed, tmp_path) == ["Mul"]


def test_sparse_floats_too(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype(np.float32)
    weight[np.abs(weight) < 1.5] = 0
    packed = pack(holder(weight))
    assert len(packed.SerializeToString()) <= weight.size / 8 + 4 * int((weight != 0).sum()) + 700
    assert np.array_equal(restored(packed), weight)
    assert folded_nodes(packed, tmp_path) == ["Mul"]


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_nothing_but_zeros_is_stored_as_its_shape(kind: type[Any], lookup: bool, tmp_path: Path) -> None:
    weight: NDArray[Any] = np.zeros((64, 32, 3, 3), dtype=kind)
    packed = pack(holder(weight), lookup=lookup)
    assert len(packed.SerializeToString()) <= 200
    assert np.array_equal(restored(packed), weight)
    assert folded_nodes(packed, tmp_path) == ["Mul"]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3)),
    bits=st.integers(2, 8),
    zeros=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 1000),
    lookup=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_codes_come_back(shape: tuple[int, ...], bits: int, zeros: float, seed: int, lookup: bool) -> None:
    draw = np.random.default_rng(seed)
    codes = draw.integers(-largest_code(bits), largest_code(bits) + 1, shape).astype(np.int8)
    codes[draw.random(shape) < zeros] = 0
    assert np.array_equal(restored(pack(holder(codes), lookup=lookup)), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_tables_take_little_more_than_planes(bits: int, zeros: float) -> None:
    model = holder(codes_of(bits, (64, 32, 3, 3), zeros))
    with_tables, with_planes = (pack(model, lookup=lookup) for lookup in (True, False))
    assert len(with_tables.SerializeToString()) <= len(with_planes.SerializeToString()) + 800
    narrow = {TensorProto.INT2, TensorProto.UINT2}
    assert not narrow & {tensor.data_type for tensor in with_tables.graph.initializer}
    assert not {"BitwiseAnd", "CumSum"} & {node.op_type for node in with_tables.graph.node}


@given(bits=st.integers(3, 8), zeros=st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_fewer_bits_and_more_zeros_never_take_more_bytes(bits: int, zeros: float) -> None:
    def size(width: int, share: float) -> int:
        return len(pack(holder(codes_of(width, (32, 16, 3, 3), share))).SerializeToString())

    assert size(bits - 1, zeros) <= size(bits, zeros)
    assert size(bits, min(zeros + 0.1, 0.99)) <= size(bits, zeros)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.85])
def test_forms_tell_the_bytes_of_any_tensor(bits: int, zeros: float) -> None:
    """They are those of a wide tensor with many zeros, and hold for narrow ones and for other shares of zeros."""
    known = forms(codes_of(bits, (64, 32, 3, 3), zeros=0.85))
    for shape in ((64, 32, 3, 3), (16, 8, 3, 3), (8, 3, 3, 3)):
        codes = codes_of(bits, shape, zeros)
        nonzero = int((codes != 0).sum())
        smallest = min(form.fixed + form.number * codes.size + form.nonzero * nonzero for form in known)
        stored = len(pack(holder(codes)).SerializeToString()) - len(holder(codes[:0]).SerializeToString())
        assert stored == pytest.approx(smallest, rel=0.01, abs=100)  # what several tensors share is not told


def test_forms_that_are_never_the_smallest_are_left_out() -> None:
    dense = [form.number for form in forms(codes_of(3, (16, 8, 3, 3))) if not form.nonzero]
    assert sorted(dense) == [3 / 8, 4 / 8, 1]  # 5, 6 and 7 bits take more bytes than 4, and more nodes


def test_bits_needed() -> None:
    assert [bits_needed(np.array(values)) for values in ([0], [-1, 1], [-2], [2], [-8, 7], [8], [-127, 127])] == [
        2, 2, 2, 3, 4, 5, 8,
    ]  # fmt: skip
