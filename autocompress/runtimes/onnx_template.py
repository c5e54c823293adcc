"""Exported graphs that are used again: torch's exporter takes seconds for networks that differ in their numbers alone."""

import operator
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress import nested
from autocompress.nested import Nested

Arrays = dict[str, NDArray[Any]]

# With these operators alone a graph says nothing of how many channels there are; a Reshape may hold it as a number.
_OF_ANY_WIDTH = {
    *("Conv", "Gemm", "MatMul", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "Add", "Sub", "Mul", "Div", "Neg"),
    *("DynamicQuantizeLinear", "MatMulInteger", "Cast"),
    *("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Tanh", "Softmax", "Identity"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Flatten", "Concat"),
}
# Nor do these functions. One that reads a shape may have made a number of it that stands in the graph.
_OF_ANY_WIDTH_CALLS = {
    *("add", "iadd", "add_", "sub", "mul", "imul", "mul_", "truediv", "cat", "mean", "relu", "relu_", "relu6", "hardtanh"),
    *("sigmoid", "hardsigmoid", "hardswish", "silu", "tanh", "leaky_relu", "softmax", "dropout", "flatten", "contiguous"),
    *("max_pool2d", "_max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
}
# What a module knows of its numbers of channels: they are in the shapes of its weights too.
_WIDTHS = {"in_channels", "out_channels", "in_features", "out_features", "num_features"}
# A tensor that the network does not name is a constant of the graph, if it is a shape, say, or a scalar.
_LARGEST_CONSTANT = 64
# Graphs are small, but for constants; a search exports few different ones.
_KEPT = 32
_A_LENGTH = np.array([1])


@dataclass(frozen=True)
class _Template:
    """An exported graph with the tensors of the network left empty.

    `holes` are their names; torch stores equal tensors once: `twins` has the names of such, each with the hole it is in.
    `turned` has the names of tensors that are matrices of the network with rows for columns, and of these.
    """

    graph: onnx.ModelProto
    holes: frozenset[str]
    twins: frozenset[tuple[str, str]]
    turned: frozenset[tuple[str, str]]

    def suits(self, arrays: Arrays) -> bool:
        return all(np.array_equal(arrays[one], arrays[other]) for one, other in self.twins)

    def filled(self, arrays: Arrays) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph)
        contents = {name: arrays[name] for name in self.holes}
        contents |= {name: np.ascontiguousarray(arrays[matrix].T) for name, matrix in self.turned}
        for tensor in model.graph.initializer:
            if tensor.name in contents:
                tensor.CopyFrom(numpy_helper.from_array(contents[tensor.name], tensor.name))
        return model


_templates: OrderedDict[Hashable, _Template] = OrderedDict()


def from_template(model: nn.Module, example: Nested) -> onnx.ModelProto | None:
    """What torch would export of `model`, made of a graph that was exported before; None when there is none.

    Only of a network as a graph (`torch.fx`) that makes nothing of its own tensors alone. `example` is a batch (n, ...).
    """
    arrays = _arrays(model)
    for key in _keys(model, arrays, example):
        if (template := _templates.get(key)) is not None and template.suits(arrays):
            _templates.move_to_end(key)
            return template.filled(arrays)
    return None


def keep_template(model: nn.Module, example: Nested, exported: onnx.ModelProto) -> None:
    """Remembers what torch has `exported` of `model` for the batch `example` (n, ...), if it can be used again."""
    arrays = _arrays(model)
    keys = list(_keys(model, arrays, example))
    template = _template(arrays, exported) if keys else None
    if template is None:
        return
    _templates[keys[0]] = template
    if len(keys) > 1 and _says_no_width(exported.graph):
        _templates[keys[1]] = template
    while len(_templates) > _KEPT:
        _templates.popitem(last=False)


def _says_no_width(graph: onnx.GraphProto) -> bool:
    lengths = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == TensorProto.INT64
    }
    return all(
        node.op_type in _OF_ANY_WIDTH or (node.op_type == "Reshape" and (lengths.get(node.input[1], _A_LENGTH) <= 0).all())
        for node in graph.node
    )


def _template(arrays: Arrays, exported: onnx.ModelProto) -> _Template | None:
    """None when a tensor of the network is in the graph neither as it is nor with rows for columns."""
    graph = onnx.ModelProto()
    graph.CopyFrom(exported)
    del graph.graph.initializer[:]
    holes: set[str] = set()
    turned: dict[str, str] = {}
    for tensor in exported.graph.initializer:
        content = numpy_helper.to_array(tensor)
        if tensor.name in arrays and np.array_equal(content, arrays[tensor.name]):
            holes.add(tensor.name)
            graph.graph.initializer.append(onnx.TensorProto(name=tensor.name))
        elif (matrix := _turned(content, arrays)) is not None:
            turned[tensor.name] = matrix
            graph.graph.initializer.append(onnx.TensorProto(name=tensor.name))
        elif content.size == 1 or (content.dtype == np.int64 and content.size <= _LARGEST_CONSTANT):
            graph.graph.initializer.append(tensor)
        else:  # it may be made of the network's weights
            return None
    twins = set()
    for name in arrays.keys() - holes - set(turned.values()):
        array = arrays[name]
        twin = next((hole for hole in sorted(holes) if _equal(arrays[hole], array)), None)
        if twin is None:
            return None
        twins.add((name, twin))
    return _Template(graph, frozenset(holes), frozenset(twins), frozenset(turned.items()))


def _turned(content: NDArray[Any], arrays: Arrays) -> str | None:
    """The one matrix of the network that is `content` with rows for columns; None when there is none, or several."""
    found = [name for name, array in arrays.items() if array.ndim == 2 and array.size > 1 and _equal(array.T, content)]
    return found[0] if len(found) == 1 else None


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _arrays(model: nn.Module) -> Arrays:
    """The tensors of the modules that the network calls, and its own."""
    return _own_arrays(model) | {
        f"{name}.{own}": tensor.detach().cpu().numpy()
        for name in _called(model)
        for own, tensor in model.get_submodule(name).state_dict().items()
        if not own.endswith("num_batches_tracked")  # training alone reads it
    }


def _own_arrays(model: nn.Module) -> Arrays:
    """What the graph reads without a module around it, such as the class token of a transformer."""
    if not isinstance(model, GraphModule):
        return {}
    read = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    tensors = {name: operator.attrgetter(name)(model) for name in read}
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _called(model: nn.Module) -> list[str]:
    """The modules that a network calls, as a graph; none when it makes something of its own tensors alone.

    torch computes that once, and what stands in the graph then is of these tensors.
    """
    if not isinstance(model, GraphModule):
        return []
    own = [node for node in model.graph.nodes if node.op == "get_attr"]
    if any(all(given.op == "get_attr" for given in user.all_input_nodes) for node in own for user in node.users):
        return []
    return list(dict.fromkeys(str(node.target) for node in model.graph.nodes if node.op == "call_module"))


def _keys(model: nn.Module, arrays: Arrays, example: Nested) -> Iterator[Hashable]:
    """What networks share that export to the same graph: those of the same shapes, then those of any within."""
    called = _called(model)
    if not called:
        return
    parts = [(name, own, part) for name in called for own, part in model.get_submodule(name).named_modules()]
    settings = tuple((name, own, type(part).__module__, type(part).__qualname__, _settings(part)) for name, own, part in parts)
    kinds = tuple((name, array.dtype.str, array.ndim) for name, array in sorted(arrays.items()))
    outside = tuple((name, part.shape[1:], part.dtype) for name, part in nested.named(example, "").items())
    yield model.code, settings, kinds, outside, tuple(array.shape for _, array in sorted(arrays.items()))
    if _reads_no_width(model) and not _own_arrays(model):
        # The graph says what goes out too.
        ends = tuple(array.shape[:1] for name, array in sorted(arrays.items()) if name.startswith(f"{called[-1]}."))
        yield model.code, settings, kinds, outside, ends


def _reads_no_width(model: nn.Module) -> bool:
    assert isinstance(model, GraphModule)
    calls = [node.target for node in model.graph.nodes if node.op in ("call_function", "call_method")]
    return {call if isinstance(call, str) else getattr(call, "__name__", "") for call in calls} <= _OF_ANY_WIDTH_CALLS


def _settings(module: nn.Module) -> str:
    plain = (bool, int, float, str, tuple, list, type(None))
    known = {name: value for name, value in vars(module).items() if isinstance(value, plain) and name not in _WIDTHS}
    return repr(sorted(known.items()))
