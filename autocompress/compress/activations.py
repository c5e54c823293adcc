"""Quantised activations: where a network must round them so that the runtime can compute in integers."""

from collections import Counter
from collections.abc import Collection

from torch import nn
from torch.fx import GraphModule, Node

from autocompress.errors import SurgeryError
from autocompress.graph import insert_after, is_add, is_output, module_of, origin, tail, trace
from autocompress.nested import Nested
from autocompress.student import ActivationQuantizer, StudentLayer, plain_of


def quantize_activations(model: nn.Module, layers: Collection[str], inputs: Nested) -> GraphModule:
    """`model` as a graph in which what the named layers read and write goes through an `ActivationQuantizer`.

    Batch norm and ReLU count to the layer before them; sums of quantised values are quantised too, so that a residual
    network stays in integers from block to block. The outputs of the network stay float, and so does a layer that is
    called more than once: it has one weight, but as many input scales as calls. The layers are shared with `model`, which is
    called with `inputs`. Raises `SurgeryError` when the forward function cannot be traced.
    """
    graph = trace(model, inputs)
    if graph is None:
        raise SurgeryError("activations cannot be quantised: the model's forward depends on the values it sees")
    insert_after(_rounded_nodes(graph, layers), graph, ActivationQuantizer, "activation_")
    return graph


def quantisable_activations(model: nn.Module, inputs: Nested) -> list[str]:
    """The layers of `model` that `quantize_activations` can round the inputs and outputs of."""
    graph = trace(model, inputs)
    if graph is None:
        return []
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    return [name for name, count in calls.items() if count == 1 and _can_round(graph.get_submodule(name))]


def _rounded_nodes(graph: GraphModule, layers: Collection[str]) -> list[Node]:
    rounded: dict[Node, None] = {}
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
        if _has_integer_kernel(module_of(node, graph)) and node.target in layers and calls[node.target] == 1:
            rounded[origin(node.args[0], graph)] = None
            # A linear layer alone gives floats from the same kernel: whoever wants them rounded, asks for it.
            if not isinstance(plain_of(module_of(node, graph)), nn.Linear) or tail(node, graph) is not node:
                _round_tail(node, graph, rounded)
        elif is_add(node) and all(isinstance(term, Node) and origin(term, graph) in rounded for term in node.args):
            _round_tail(node, graph, rounded)
    return list(rounded)


def _has_integer_kernel(module: nn.Module | None) -> bool:
    return isinstance(module, StudentLayer) and _can_round(module.layer)


def _can_round(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)


def _round_tail(node: Node, graph: GraphModule, rounded: dict[Node, None]) -> None:
    last = tail(node, graph)
    if not is_output(last, graph):
        rounded[last] = None
