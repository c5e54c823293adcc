"""What stands for quantisation while torch exports a student, and what takes its place in the exported graph.

torch takes long for operators that it does not know. So a quantizer is one of them, not two, and a convolution of codes is
one of floats until the graph is there.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.runtimes.onnx_slim import LOADED_CODES

# The operator that rounds an activation, given its scale and its zero point: it is in no file.
DOMAIN, ROUNDED = "autocompress", "RoundedActivation"


@dataclass(frozen=True)
class StoredWeight:
    """What a file has for a weight that was exported as floats: int8 codes of its shape and scales of shape (out,).

    `axis` of the codes counts the outputs. Codes that are `integer` stay so until the runtime fuses them with the layer;
    others become floats once, when the file is loaded.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int
    integer: bool

    def written(self, name: str) -> tuple[TensorProto, TensorProto, NodeProto]:
        """Codes, scales, and the node that makes the weight called `name` of them."""
        codes, scale = f"{name}/{'codes' if self.integer else LOADED_CODES}", f"{name}/scale"
        node = helper.make_node("DequantizeLinear", [codes, scale], [name], axis=self.axis)
        return numpy_helper.from_array(self.codes, codes), numpy_helper.from_array(self.scale, scale), node


def with_pairs(model: ModelProto) -> ModelProto:
    """Makes a QuantizeLinear / DequantizeLinear pair of every rounded activation."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if (node.domain, node.op_type) == (DOMAIN, ROUNDED):
            (activation, *grid), (output,) = node.input, node.output
            rounded = f"{output}/rounded"
            model.graph.node.append(helper.make_node("QuantizeLinear", [activation, *grid], [rounded]))
            model.graph.node.append(helper.make_node("DequantizeLinear", [rounded, *grid], [output]))
        else:
            model.graph.node.append(node)
    return model


def changed(model: ModelProto, weights: Mapping[str, NDArray[Any]]) -> set[str]:
    """The names of those of `weights` that `model` does not have under these names, as they are.

    torch folds a batch norm into a convolution, under the name of its weight, and computes what depends on constants alone.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        name
        for name, weight in weights.items()
        if name not in tensors or not np.array_equal(numpy_helper.to_array(tensors[name]), weight)
    }


def with_codes(model: ModelProto, stored: Mapping[str, StoredWeight]) -> ModelProto:
    """Replaces each of the tensors that `stored` names by codes and scales, and what makes the tensor of them."""
    graph = model.graph
    if not stored:
        return model
    written = {name: weight.written(name) for name, weight in stored.items()}
    # `slim` numbers tensors in their order. Many nodes read the first ones; scales of codes that become floats will be gone.
    uses = Counter(name for node in graph.node for name in node.input)
    tensors, nodes = sorted(graph.initializer, key=lambda tensor: -uses[tensor.name]), list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(written[tensor.name][0] if tensor.name in written else tensor for tensor in tensors)
    graph.initializer.extend(scale for _, scale, _ in written.values())
    for node in nodes:
        graph.node.extend(written.pop(name)[2] for name in dict.fromkeys(node.input) if name in written)
        graph.node.append(node)
    return model
