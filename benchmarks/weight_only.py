"""Which kernel is quickest for a linear layer on ONNX Runtime? Floats, weight-only kernels, static and dynamic integers.

    python benchmarks/weight_only.py                    (about a minute; with nothing else on the machine, or with)

For square linear layers of several sizes and for one and sixteen examples: four layers, each with a ReLU, in one file. Every
kernel is timed in turn, many times over, and has the least time it ever took; printed is that as a share of the time of
floats (below 1: quicker).

    float       weights of any bits that have become floats when the file was loaded, as files have them here
    4 / 8 bit   MatMulNBits of ONNX Runtime with groups of 32 or 128: it unpacks weights as it multiplies, and rounds what
                goes in by accuracy_level 4, not by level 0
    static      QGemm: activations are rounded in steps that are known beforehand
    dynamic     DynamicQuantizeLinear and MatMulInteger, fused: the range is that of each batch
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
from interleaved import least_ms
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from printing import print_machine

from autocompress.runtimes.onnx_slim import IR_VERSION, OPSET
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.target import Target

SIZES = (64, 128, 256, 512, 1024)
BATCHES = (1, 16)
LAYERS = 4
_SCALE = np.float32(0.02)


class Graph:
    """A file under construction: layers of `size` inputs and outputs, each followed by a ReLU."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.draw = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def store(self, value: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(value, f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def call(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        names = tuple(f"t{len(self.nodes)}_{place}" for place in range(outputs))
        self.nodes.append(helper.make_node(operator, list(inputs), list(names), domain=domain, **attributes))
        return names

    def codes(self, largest: int) -> NDArray[np.int8]:
        return self.draw.integers(-largest, largest + 1, (self.size, self.size)).astype(np.int8)

    def bias(self) -> str:
        return self.store(self.draw.standard_normal(self.size, dtype=np.float32))

    def file(self, layer: Callable[["Graph", str], str]) -> bytes:
        value = "input"
        for _ in range(LAYERS):
            (value,) = self.call("Relu", layer(self, value))
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, self.size]) for name in ("input", value)]
        graph = helper.make_graph(self.nodes, "g", ends[:1], ends[1:], self.tensors)
        sets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        content: bytes = helper.make_model(graph, opset_imports=sets, ir_version=IR_VERSION).SerializeToString()
        return content


def floats(graph: Graph, given: str) -> str:
    weight = graph.codes(7).astype(np.float32) * _SCALE
    return graph.call("Gemm", given, graph.store(weight), graph.bias(), transB=1)[0]


def weight_only(bits: int, group: int, accuracy_level: int) -> Callable[[Graph, str], str]:
    def layer(graph: Graph, given: str) -> str:
        group_size = min(group, graph.size)
        codes = (graph.codes(2 ** (bits - 1) - 1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
        packed = codes[:, ::2] | (codes[:, 1::2] << 4) if bits == 4 else codes
        scales = np.full((graph.size, graph.size // group_size), _SCALE)
        settings = {"K": graph.size, "N": graph.size, "bits": bits, "block_size": group_size, "accuracy_level": accuracy_level}
        weight = graph.store(packed.reshape(graph.size, graph.size // group_size, -1))
        inputs = [given, weight, graph.store(scales), "", "", graph.bias()]
        return graph.call("MatMulNBits", *inputs, domain="com.microsoft", **settings)[0]

    return layer


def static(graph: Graph, given: str) -> str:
    step, zero = graph.store(np.array(0.05, dtype=np.float32)), graph.store(np.array(0, dtype=np.uint8))
    rounded = graph.call("DequantizeLinear", *graph.call("QuantizeLinear", given, step, zero), step, zero)[0]
    scales, zeros = np.full(graph.size, _SCALE), np.zeros(graph.size, dtype=np.int8)
    codes = graph.store(graph.codes(63))
    weight = graph.call("DequantizeLinear", codes, graph.store(scales), graph.store(zeros), axis=0)[0]
    steps = graph.store(graph.draw.integers(-100, 100, graph.size).astype(np.int32))
    bias = graph.call("DequantizeLinear", steps, graph.store(scales * np.float32(0.05)), axis=0)[0]
    return graph.call("Gemm", rounded, weight, bias, transB=1)[0]


def dynamic(graph: Graph, given: str) -> str:
    rounded, step, zero = graph.call("DynamicQuantizeLinear", given, outputs=3)
    scales = graph.store(np.full(graph.size, _SCALE))
    zeros = graph.store(np.zeros(graph.size, dtype=np.int8))
    sums = graph.call("MatMulInteger", rounded, graph.store(graph.codes(63).T), zero, zeros)[0]
    product = graph.call("Mul", *graph.call("Cast", sums, to=TensorProto.FLOAT), *graph.call("Mul", step, scales))[0]
    return graph.call("Add", product, graph.bias())[0]


KERNELS: dict[str, Callable[[Graph, str], str]] = {
    "float": floats,
    **{
        f"{bits} bit g{group} level {level}": weight_only(bits, group, level)
        for bits in (4, 8)
        for group in (32, 128)
        for level in (0, 4)
    },
    "static": static,
    "dynamic": dynamic,
}


def least_of(size: int, batch: int) -> dict[str, float]:
    """The least milliseconds of each kernel."""
    target = Target(batch_size=batch)
    inputs = np.random.default_rng(0).standard_normal((batch, size), dtype=np.float32)
    return least_ms({name: partial(_opened, size, kernel, target) for name, kernel in KERNELS.items()}, inputs)


def _opened(size: int, kernel: Callable[[Graph, str], str], target: Target) -> OnnxSession:
    return OnnxSession(Graph(size).file(kernel), target)


def main() -> None:
    print_machine()
    print(f"| batch | size | float, ms | {' | '.join(list(KERNELS)[1:])} |")
    print("| --- " * (len(KERNELS) + 2) + "|")
    for batch in BATCHES:
        for size in SIZES:
            least = least_of(size, batch)
            whole = least.pop("float")
            ratios = " | ".join(f"{ms / whole:.2f}" for ms in least.values())
            print(f"| {batch} | {size} | {whole:.4f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
