"""A network as a graph of calls (torch.fx), and what of it matters to quantisation and to export."""

import inspect
import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.fx.node import map_arg

from autocompress.nested import Nested
from autocompress.student import ActivationQuantizer, StudentLayer, kind_of, plain_of

# These pass values on as they are, only fewer or in other places: rounding before them is rounding after them.
_MOVE = (nn.MaxPool1d, nn.MaxPool2d, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.Identity)
_MOVE_CALLS: set[Any] = {torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze}
_MOVE_CALLS |= {nn.functional.max_pool2d, nn.functional.max_pool1d, nn.functional.dropout, torch.max_pool2d}
_MOVE_CALLS |= {"flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze"}

# These are executed together with the layer before them.
_CLIP = (nn.ReLU, nn.ReLU6)
_CLIP_CALLS: set[Any] = {torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu6, "relu", "relu_"}

BatchNorm = nn.modules.batchnorm._BatchNorm
_FOLDED = (
    (nn.Conv1d | nn.ConvTranspose1d, nn.BatchNorm1d),
    (nn.Conv2d | nn.ConvTranspose2d, nn.BatchNorm2d),
    (nn.Conv3d | nn.ConvTranspose3d, nn.BatchNorm3d),
)

_ADD_CALLS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}


class _LayerTracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A layer of the user's own class that computes as torch's does counts as one of torch's.
        ours = isinstance(m, StudentLayer | ActivationQuantizer) or kind_of(m) is not None
        return ours or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, inputs: Nested) -> GraphModule | None:
    """`model` in evaluation mode as a graph that shares its layers; None when its forward depends on the values it sees.

    It takes what `inputs` has; whatever else the forward function may be given has its default value.
    """
    return traced_by(_LayerTracer(), model, inputs)


def traced_by(tracer: Tracer, model: nn.Module, inputs: Nested) -> GraphModule | None:
    """`trace` with a tracer of the caller's own."""
    was_training = model.training
    try:
        graph = tracer.trace(model.eval(), _defaults(model, inputs) or None)
        _drop_defaults(graph)
        _read_of_layers(graph, model)
        for node in graph.nodes:
            if node.op == "call_module" and not node.args and node.kwargs.keys() == {"input"}:  # as all torch's layers call it
                node.args, node.kwargs = (node.kwargs["input"],), {}
        return GraphModule(model, graph)
    except Exception:  # noqa: BLE001  # the user's forward meets a stand-in for a tensor, and may do anything then
        return None
    finally:
        model.train(was_training)


def _defaults(model: nn.Module, inputs: Nested) -> dict[str, Any]:
    """The values of those parameters of the forward function that `inputs` does not give."""
    parameters = inspect.signature(model.forward).parameters
    positions = len(inputs) if isinstance(inputs, tuple) else 1
    given = set(inputs) if isinstance(inputs, dict) else set(list(parameters)[:positions])
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in given and parameter.default is not inspect.Parameter.empty
    }


def _drop_defaults(graph: Graph) -> None:
    """Removes what `torch.fx` makes of parameters with a fixed value: inputs nobody reads, and checks that they are None."""
    for node in reversed(list(graph.nodes)):
        check = node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert_is_none"
        if not node.users and (check or (node.op == "placeholder" and node.args)):
            graph.erase_node(node)


def _read_of_layers(graph: Graph, model: nn.Module) -> None:
    """Asks the layer itself for its weight or bias where the network reads one: another may take the layer's place."""
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        path, _, name = str(node.target).rpartition(".")
        outer = path.removesuffix(".layer")
        if not path:  # the network's own
            continue
        if isinstance(model.get_submodule(outer), StudentLayer):
            path = outer
        elif kind_of(model.get_submodule(path)) is None:
            continue
        with graph.inserting_before(node):
            read = graph.call_function(getattr, (graph.get_attr(path), name))
        node.replace_all_uses_with(read)
        graph.erase_node(node)


def module_of(node: Any, graph: GraphModule) -> nn.Module | None:
    """The module that a node calls, if any."""
    return graph.get_submodule(str(node.target)) if isinstance(node, Node) and node.op == "call_module" else None


def is_add(node: Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _ADD_CALLS


def norm_after(node: Node, graph: GraphModule) -> Node | None:
    """The batch norm that can be folded into the convolution at `node`: its only user, with running statistics.

    Not behind a transposed convolution in groups, which have their scales in common.
    """
    users = list(node.users)
    norm = module_of(users[0], graph) if len(users) == 1 else None
    layer = module_of(node, graph)
    plain = plain_of(layer)
    if not any(isinstance(plain, layers) and isinstance(norm, norms) for layers, norms in _FOLDED):
        return None
    shared_scales = isinstance(plain, nn.modules.conv._ConvTransposeNd) and plain.groups > 1
    has_statistics = getattr(norm, "running_var", None) is not None
    return users[0] if has_statistics and not shared_scales else None


def moves(node: Node, graph: GraphModule) -> bool:
    """True when `node` passes values on as they are: max-pooling, flattening and the like."""
    return _is(node, graph, _MOVE, _MOVE_CALLS)


def clips(node: Node, graph: GraphModule) -> bool:
    """True when `node` is a ReLU."""
    return _is(node, graph, _CLIP, _CLIP_CALLS)


def origin(node: Node, graph: GraphModule) -> Node:
    """The node that made the values `node` passes on: walks back through max-pooling, flattening and the like."""
    while moves(node, graph) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def tail(node: Node, graph: GraphModule) -> Node:
    """The last of the nodes executed together with `node`: the batch norm and the ReLU that follow it, if they do."""
    node = norm_after(node, graph) or node
    users = list(node.users)
    return users[0] if len(users) == 1 and clips(users[0], graph) else node


def settle_attributes(graph: GraphModule) -> None:
    """Answers what the network asks about its parameters, ``x.to(self.conv.weight.dtype)``, once and for all.

    Whatever takes the place of a layer may have no such parameter.
    """
    for node in list(graph.graph.nodes):
        asked = _attribute(node.args[0], graph) if node.target is getattr else None
        if isinstance(asked, Tensor) and node.args[1] in ("dtype", "shape", "device"):
            answer = getattr(asked, str(node.args[1]))
            for user in list(node.users):
                user.args, user.kwargs = (_replaced(given, node, answer) for given in (user.args, user.kwargs))
            _erase_unread(node)
    graph.recompile()


def _erase_unread(node: Any) -> None:
    """Erases `node`, and what nobody else reads of all that it was read from."""
    while isinstance(node, Node) and not node.users:
        source = node.args[0] if node.args else None
        node.graph.erase_node(node)
        node = source


def _attribute(node: Any, graph: GraphModule) -> Any:
    """What `node` has from the network alone: a module, or what is in one. None when it is computed."""
    if isinstance(node, Node) and node.op == "get_attr":
        return operator.attrgetter(str(node.target))(graph)
    if isinstance(node, Node) and node.target is getattr:
        return getattr(_attribute(node.args[0], graph), str(node.args[1]), None)
    return None


def runs_of(node: Node) -> int:
    """How often the layer at `node` is called, and its weight read beside: it has one weight for all of that."""
    return sum(other.op in ("call_module", "get_attr") and other.target == node.target for other in node.graph.nodes)


def _replaced(given: Any, node: Node, value: Any) -> Any:
    return map_arg(given, lambda other: value if other is node else other)


def is_output(node: Node, graph: GraphModule) -> bool:
    """True when the values of `node` go nowhere but out of the network."""
    return all(user.op == "output" or (moves(user, graph) and is_output(user, graph)) for user in node.users)


def insert_after(nodes: list[Node], graph: GraphModule, make: Callable[[], nn.Module], prefix: str) -> None:
    """Calls a new module on the value of each node; all its users then use the result."""
    taken = {name for name, _ in graph.named_children()}
    names = (name for name in (f"{prefix}{place}" for place in itertools.count()) if name not in taken)
    for name, node in zip(names, nodes, strict=False):
        graph.add_submodule(name, make())
        users = list(node.users)
        with graph.graph.inserting_after(node):
            inserted = graph.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, inserted)
    graph.recompile()


def _is(node: Node, graph: GraphModule, modules: tuple[type[nn.Module], ...], calls: set[Any]) -> bool:
    if node.op == "call_module":
        return isinstance(module_of(node, graph), modules)
    return node.op in ("call_function", "call_method") and node.target in calls
