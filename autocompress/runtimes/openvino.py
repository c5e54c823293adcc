"""ONNX files on OpenVINO, on a CPU: the export of a student, and a session that runs a file.

The file is as small as that for ONNX Runtime, and OpenVINO, too, restores the weights once, when it loads it. Its own format
takes more bytes: it tells of each operation in a few hundred characters of XML.
"""

from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from autocompress import nested
from autocompress.errors import ExportError, InputError
from autocompress.nested import Nested
from autocompress.runtimes.onnx_file import check_alone
from autocompress.runtimes.onnx_graph import to_onnx
from autocompress.runtimes.onnx_pack import pack
from autocompress.runtimes.slot import OUTPUT, Slot, by_slot
from autocompress.target import Target

# OpenVINO would compute in half precision, and round what linear layers take in, where the CPU is quick at that: the
# outputs would be those of another policy. Pinned threads would wait for whoever else runs on their cores.
SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "ENABLE_CPU_PINNING": False,
}

_LOWEST = "lowest"

USAGE = f"""\
import numpy as np
import openvino

settings = {SETTINGS}
model = openvino.Core().compile_model("{{file}}", "CPU", settings)
inputs = {{inputs}}
outputs = model(inputs).to_tuple()  # an array for each of model.outputs
"""


def export(student: nn.Module, example: Nested) -> bytes:
    """The content of the .onnx file that does what `student` does. `example` is a batch (n, ...).

    Raises `ExportError`; `InputError` where OpenVINO is not installed.
    """
    _core()
    graph = _with_biases_of_patches(_without_groups_at_run_time(_scaled_when_found(to_onnx(student, example))))
    content: bytes = pack(graph, lookup=True).SerializeToString()
    return content


class OpenVinoSession:
    """A loaded file: arrays in, arrays out.

    Raises `ExportError` when OpenVINO refuses the file, `InputError` where it is not installed or the target is no CPU.
    """

    def __init__(self, model: bytes, target: Target) -> None:
        if target.device != "cpu":
            raise InputError(f"the runtime openvino runs on the device 'cpu', given {target.device!r}")
        check_alone(model)
        core = _core()
        try:
            compiled = core.compile_model(core.read_model(model), "CPU", SETTINGS | {"INFERENCE_NUM_THREADS": target.threads})
        except RuntimeError as error:
            raise ExportError(f"OpenVINO refuses the exported file: {_reason(error)}") from error
        self.inputs = tuple(Slot(port.any_name, _sizes(port), port.element_type.to_dtype().name) for port in compiled.inputs)
        self._outputs = [port.any_name for port in compiled.outputs]
        self._request = compiled.create_infer_request()

    def __call__(self, inputs: Nested) -> Nested:
        """The outputs for a batch (n, ...), nested as those of the network; `inputs` by name, or in order."""
        outputs = self._request.infer(by_slot(inputs, self.inputs), share_inputs=True)
        return nested.restored(dict(zip(self._outputs, outputs.to_tuple(), strict=True)), OUTPUT)


def _scaled_when_found(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rows of an embedding's codes are multiplied by their scales after they are looked up.

    OpenVINO takes scales before a lookup for one a row, whatever shape they have.
    """
    graph = model.graph
    makers = {node.output[0]: node for node in graph.node}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        scaled = makers.get(node.input[0]) if node.op_type == "Gather" else None
        codes = makers.get(scaled.input[0]) if scaled is not None and scaled.op_type == "Mul" else None
        if scaled is None or codes is None or codes.op_type != "Cast":
            graph.node.append(node)
            continue
        found = f"{node.output[0]}_codes"
        graph.node.append(helper.make_node("Gather", [codes.output[0], node.input[1]], [found]))
        graph.node.append(helper.make_node("Mul", [found, scaled.input[1]], [node.output[0]]))
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in [node for node in graph.node if used.isdisjoint(node.output)]:
        graph.node.remove(node)
    return model


def _without_groups_at_run_time(model: onnx.ModelProto) -> onnx.ModelProto:
    """Codes with scales for groups of inputs become floats by way of 32 bits.

    Of 8 bits OpenVINO would keep them, and multiply them by their scales at every run: that takes four times as long.
    """
    graph = model.graph
    codes = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    repeated = {node.output[0] for node in graph.node if node.op_type == "Gather" and node.attribute}
    in_groups = {node.input[0] for node in graph.node if node.op_type == "Mul" and node.input[1] in repeated}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == "Cast" and node.output[0] in in_groups and node.input[0] in codes:
            wide = f"{node.output[0]}_wide"
            graph.node.append(helper.make_node("Cast", [node.input[0]], [wide], to=onnx.TensorProto.INT32))
            node.input[0] = wide
        graph.node.append(node)
    return model


def _with_biases_of_patches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Between a convolution and its rounding to integers that are reshaped next stands a Max that changes nothing.

    OpenVINO would make the bias a part of the rounding, and lose it there.
    """
    graph = model.graph
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        rounded = [user for user in users.get(node.output[0], []) if user.op_type == "QuantizeLinear"]
        floats = [user for one in rounded for user in users[one.output[0]] if user.op_type == "DequantizeLinear"]
        reshaped = any(user.op_type == "Reshape" for one in floats for user in users[one.output[0]])
        if node.op_type != "Conv" or not reshaped:
            continue
        if _LOWEST not in users:
            users[_LOWEST] = []
            graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min), _LOWEST))
        given = f"{node.output[0]}_with_bias"
        graph.node.append(helper.make_node("Max", [node.output[0], _LOWEST], [given]))
        for one in rounded:
            one.input[0] = given
    return model


def _sizes(port: Any) -> tuple[int, ...]:
    return tuple(size.get_length() for size in list(port.partial_shape)[1:])


def _reason(error: Exception) -> str:
    """OpenVINO tells the places in its source first."""
    return [line for line in str(error).splitlines() if line.strip()][-1]


@cache
def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError("the runtime openvino is not installed: pip install 'autocompress[openvino]'") from error
    return openvino.Core()
