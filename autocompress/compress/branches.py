"""Depth pruning: residual branches, whose outputs are only added to other values, left out as a whole."""

import operator
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from autocompress import nested
from autocompress.errors import SurgeryError
from autocompress.graph import clips, is_add, module_of, moves, trace
from autocompress.layer import Group
from autocompress.nested import Nested
from autocompress.student import kind_of

# These give nothing for nothing. A norm does not, but belongs to the branch that it ends.
_NOTHING_OF_NOTHING = (nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Tanh)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_CALLS: set[Any] = {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.neg, torch.neg}
_CALLS |= {nn.functional.gelu, nn.functional.silu}


def with_branches(model: nn.Module, groups: Iterable[Group], example: Nested) -> list[Group]:
    """`groups` with the `branch` of each whose channels may all go; `example` is a batch (n, ...)."""
    whole = trace(model, example)
    if whole is None:
        return list(groups)
    with torch.no_grad():
        shapes = nested.shapes(nested.call(model, example))
    found, known = [], set[tuple[str, ...]]()
    for group in groups:
        branch = _branch(whole, group, example, shapes)
        # Of several groups within one branch any would do.
        found.append(group.model_copy(update={"branch": branch if branch not in known else ()}))
        known.add(branch)
    return found


def leave_out(model: nn.Module, groups: Iterable[Group], example: Nested) -> GraphModule:
    """`model` as a graph without the branches of these groups; the layers that are left are shared with it.

    `example` is a batch (n, ...). Raises `SurgeryError` when the network needs some of the channels of a group, or its
    forward function cannot be traced.
    """
    graph = trace(model, example)
    if graph is None:
        raise SurgeryError("no branch can be left out: the model's forward depends on the values it sees")
    return _without(graph, groups)


def _without(graph: GraphModule, groups: Iterable[Group]) -> GraphModule:
    for group in groups:
        if not _add_nothing(graph, group):
            raise SurgeryError(f"the network needs some of the channels of {group.name}")
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
    return graph


def _branch(whole: GraphModule, group: Group, example: Nested, shapes: Any) -> tuple[str, ...]:
    """The layers that have nothing left to do without any channel of `group`; `shapes` are those of the outputs."""
    try:
        rest = _without(GraphModule(whole, deepcopy(whole.graph)), [group])
        with torch.no_grad():
            same = nested.shapes(nested.call(rest, example)) == shapes
    except (SurgeryError, RuntimeError):
        return ()
    left = {name for name, _ in rest.named_modules()}
    gone = tuple(name for name, module in whole.named_modules() if kind_of(module) is not None and name not in left)
    return gone if same and {*group.writers, *group.readers} <= set(gone) else ()


def _add_nothing(graph: GraphModule, group: Group) -> bool:
    """Rewires `graph` as if the readers of `group` gave zeros. False when these would not only be added to something."""
    absent, zero = set[Node](), set[Node]()
    for node in list(graph.graph.nodes):
        sources = set(node.all_input_nodes)
        module = module_of(node, graph)
        layer = str(node.target) if module is not None and kind_of(module) is not None else None
        if layer in group.writers:
            absent.add(node)
        elif layer in group.readers:
            zero.add(node)
        elif not sources & (absent | zero):
            continue
        elif layer is not None or node.op == "output":
            return False
        elif sources & absent:
            absent.add(node)
        elif is_add(node) and len(node.args) == 2 and not node.kwargs:
            others = [source for source in node.args if source not in zero]
            if others and not isinstance(others[0], Node):
                return False
            if others:
                node.replace_all_uses_with(others[0])
            else:
                zero.add(node)
        elif _gives_nothing(node, graph):
            zero.add(node)
        else:
            return False
    return bool(zero)


def _gives_nothing(node: Node, graph: GraphModule) -> bool:
    if moves(node, graph) or clips(node, graph) or node.target in _CALLS:
        return True
    return isinstance(module_of(node, graph), (*_NOTHING_OF_NOTHING, *_NORMS))
