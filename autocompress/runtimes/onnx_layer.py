"""A file with one layer alone, as it stands in an exported network: to time it, and to see what it stores.

Built without torch, whose exporter takes a second for a file.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.runtimes.onnx_slim import IR_VERSION, OPSET
from autocompress.runtimes.single import LayerShape, Manner
from autocompress.runtimes.slot import INPUT, OUTPUT

Array = NDArray[Any]

# In range for weights and activations of unit variance; what values they have does not matter to an integer kernel.
_SCALE = np.float32(0.05)


def layer_file(shape: LayerShape, manner: Manner) -> tuple[bytes, Array]:
    """The content of a file with that layer and a ReLU, and inputs for it.

    An integer layer takes and gives uint8, as it does between two others: the time is that of the kernel alone. That of a
    convolution has the layout that ONNX Runtime computes in (channels last). A linear layer of several vectors for each
    example takes and gives floats, as it is exported, and rounds its inputs.
    """
    graph = _Graph(shape, manner)
    match manner:
        case "float":
            output = graph.layer(graph.store("w", graph.weight))
        case "codes":
            output = graph.layer(graph.floats_of_codes())
        case "groups":
            output = graph.layer(graph.floats_of_groups())
        case "integer":
            output = graph.matrices() if shape.is_of_matrices else graph.layer(graph.integers())
        case "dynamic":
            output = graph.dynamic()
    output = graph.call("Relu", output)
    if graph.is_of_codes:
        graph.quantised(output)
    content: bytes = graph.model().SerializeToString()
    return content, graph.example()


class _Graph:
    """A graph under construction. What it stores is drawn from a fixed seed."""

    def __init__(self, shape: LayerShape, manner: Manner) -> None:
        self.shape, self.manner = shape, manner
        self.draw = np.random.default_rng(0)
        self.weight = self.draw.standard_normal(shape.weight_shape, dtype=np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    @property
    def is_convolution(self) -> bool:
        return self.shape.kind == "conv2d"

    @property
    def is_of_codes(self) -> bool:
        """True when inputs and outputs are integers."""
        return self.manner == "integer" and not self.shape.is_of_matrices

    def store(self, name: str, value: Array) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def call(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.calls(operator, *inputs, outputs=1, **attributes)[0]

    def calls(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{place}" if place else f"t{len(self.nodes)}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def codes(self) -> tuple[str, Array]:
        codes = (self.weight / _SCALE).round().clip(-127, 127).astype(np.int8)
        return self.store("w", codes), np.full(self.shape.outputs, _SCALE)

    def floats_of_codes(self) -> str:
        codes, scale = self.codes()
        column = scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        return self.call("Mul", self.call("Cast", codes, to=TensorProto.FLOAT), self.store("s", column))

    def floats_of_groups(self) -> str:
        codes, scale = self.codes()
        numbers = [self.store(name, np.array(number)) for name, number in (("n", 0), ("i", self.shape.inputs), ("o", 1))]
        group_of_input = self.call("Div", self.call("Range", *numbers), "i")
        steps = self.call("Gather", self.store("s", scale[:, None]), group_of_input, axis=1)
        return self.call("Mul", self.call("Cast", codes, to=TensorProto.FLOAT), steps)

    def integers(self) -> str:
        codes, scale = self.codes()
        inputs = [codes, self.store("s", scale)]
        if not self.is_convolution:  # ONNX Runtime fuses a Gemm only if its weight has a zero point
            inputs.append(self.store("z", np.zeros(self.shape.outputs, dtype=np.int8)))
        return self.call("DequantizeLinear", *inputs, axis=0)

    def dynamic(self) -> str:
        codes = (self.weight.T / _SCALE).round().clip(-127, 127).astype(np.int8)
        scale = self.store("s", np.full(self.shape.outputs, _SCALE))
        rounded, step, zero_point = self.calls("DynamicQuantizeLinear", self.input(), outputs=3)
        sums = self.call("MatMulInteger", rounded, self.store("w", codes), zero_point)
        product = self.call("Mul", self.call("Cast", sums, to=TensorProto.FLOAT), self.call("Mul", step, scale))
        return self.call("Add", product, self.bias()) if self.shape.bias else product

    def matrices(self) -> str:
        codes, step = (self.weight.T / _SCALE).round().clip(-127, 127).astype(np.int8), self.store("a", np.array(_SCALE))
        zero_point = self.store("b", np.array(128, dtype=np.uint8))
        rounded = self.call("QuantizeLinear", INPUT, step, zero_point)
        columns = [
            self.store("w", codes),
            self.store("s", np.full(self.shape.outputs, _SCALE)),
            self.store("z", np.zeros(self.shape.outputs, dtype=np.int8)),
        ]
        given = self.call("DequantizeLinear", rounded, step, zero_point)
        return self.product(given, self.call("DequantizeLinear", *columns, axis=1))

    def product(self, given: str, columns: str) -> str:
        product = self.call("MatMul", given, columns)
        return self.call("Add", product, self.bias()) if self.shape.bias else product

    def layer(self, weight: str) -> str:
        if self.shape.is_of_matrices:
            return self.product(INPUT, self.call("Transpose", weight, perm=[1, 0]))
        inputs = [self.input(), weight, *([self.bias()] if self.shape.bias else [])]
        if not self.is_convolution:
            return self.call("Gemm", *inputs, transB=1)
        settings = {
            "strides": self.shape.stride,
            "pads": self.shape.padding,
            "dilations": self.shape.dilation,
            "group": self.shape.groups,
        }
        return self.call("Conv", *inputs, **settings)

    def input(self) -> str:
        if not self.is_of_codes:
            return INPUT
        given = self.call("Transpose", INPUT, perm=[0, 3, 1, 2]) if self.is_convolution else INPUT
        return self.call(
            "DequantizeLinear", given, self.store("a", np.array(_SCALE)), self.store("b", np.array(0, dtype=np.uint8))
        )

    def bias(self) -> str:
        if not self.is_of_codes or self.is_convolution:
            return self.store("c", self.draw.standard_normal(self.shape.outputs, dtype=np.float32))
        bias = self.draw.integers(-100, 100, self.shape.outputs).astype(np.int32)
        return self.call(
            "DequantizeLinear", self.store("c", bias), self.store("d", np.full(self.shape.outputs, _SCALE**2)), axis=0
        )

    def quantised(self, output: str) -> str:
        rounded = self.call("QuantizeLinear", output, self.store("e", np.array(1, dtype=np.float32)), "b")
        return self.call("Transpose", rounded, perm=[0, 2, 3, 1]) if self.is_convolution else rounded

    def example(self) -> Array:
        shape, channels = self.shape, self.shape.inputs
        if not self.is_convolution:
            sizes: tuple[int, ...] = (shape.batch, *([shape.size[0]] if shape.is_of_matrices else []), channels)
        elif self.is_of_codes:
            sizes = (shape.batch, *shape.size, channels)
        else:
            sizes = (shape.batch, channels, *shape.size)
        if self.is_of_codes:
            return self.draw.integers(0, 256, sizes, dtype=np.uint8)
        return self.draw.standard_normal(sizes, dtype=np.float32)

    def model(self) -> onnx.ModelProto:
        """The file, of which the output of the last node is the output."""
        self.nodes[-1].output[0] = OUTPUT
        kind = TensorProto.UINT8 if self.is_of_codes else TensorProto.FLOAT
        # Of a batch of known size ONNX Runtime makes one matrix and a Gemm: files are exported for any size.
        given = self.example().shape if not self.shape.is_of_matrices else (None, *self.example().shape[1:])
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(INPUT, kind, given)],
            [helper.make_tensor_value_info(OUTPUT, kind, [None] * len(given))],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
