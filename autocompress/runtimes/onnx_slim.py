"""An exported graph made as small as it can be without touching a weight."""

import math
from collections.abc import Collection

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.errors import ExportError

# The first opset with 2-bit tensors. The operators of a network mean the same as in 23, which torch exports.
OPSET = 25
IR_VERSION = 13

# The name of codes that are wanted as floats: a DequantizeLinear of them would be executed at every run.
LOADED_CODES = "loaded_codes"
_ROWS = "rows_of_any_width"


def floats_at_load(model: ModelProto) -> ModelProto:
    """Replaces the DequantizeLinear of `LOADED_CODES` by a Cast and a Mul, which ONNX Runtime folds into a constant."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(LOADED_CODES):
            codes, scale = node.input[0], node.input[1]
            settings = {attribute.name: attribute.i for attribute in node.attribute}
            if group_size := settings.get("block_size", 0):
                steps = scale_of_each_input(graph, scale, group_size, tensors[codes].dims[1])
            else:
                shape = [-1 if dimension == settings["axis"] else 1 for dimension in range(len(tensors[codes].dims))]
                column = numpy_helper.to_array(tensors[scale]).reshape(shape)
                steps = f"{codes}_scale"
                graph.initializer.append(numpy_helper.from_array(column, steps))
            graph.node.append(helper.make_node("Cast", [codes], [f"{codes}_floats"], to=TensorProto.FLOAT))
            graph.node.append(helper.make_node("Mul", [f"{codes}_floats", steps], [node.output[0]]))
        else:
            graph.node.append(node)
    return model


def scale_of_each_input(graph: GraphProto, scale: str, group_size: int, inputs: int) -> str:
    """Adds what repeats scales of shape (out, groups) for the inputs of each group, the last of which may have fewer.

    Gives the name of the result, shape (out, inputs). What layers of one width share is added once.
    """
    known = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    group_of = f"group_of_{inputs}_by_{group_size}"
    if group_of not in known:
        numbers = {f"number_{number}": number for number in (0, 1, inputs, group_size)}
        graph.initializer.extend(
            numpy_helper.from_array(np.array(number), name) for name, number in numbers.items() if name not in known
        )
        counted = [f"number_{number}" for number in (0, inputs, 1)]
        graph.node.append(helper.make_node("Range", counted, [f"numbers_to_{group_of}"]))
        graph.node.append(helper.make_node("Div", [f"numbers_to_{group_of}", f"number_{group_size}"], [group_of]))
    graph.node.append(helper.make_node("Gather", [scale, group_of], [f"{scale}_of_inputs"], axis=1))
    return f"{scale}_of_inputs"


def flatten_any_width(model: ModelProto) -> ModelProto:
    """Rewrites every Reshape that makes one row of each example so that it does not say how long the row is."""
    graph = model.graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.value_info)}
    wanted = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer if tensor.dims == [2]}
    for node in (node for node in graph.node if node.op_type == "Reshape"):
        dims = shapes.get(node.input[0])
        if not dims or not dims[0].dim_param:
            continue
        if wanted.get(node.input[1]) == [-1, math.prod(dim.dim_value for dim in dims[1:])]:
            node.input[1] = _ROWS
            del node.attribute[:]  # torch's ``allowzero`` would have 0 mean none
    if any(_ROWS in node.input for node in graph.node):
        # The first dimension as it is, whatever is left in the second.
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), _ROWS))
    return model


def slim(model: ModelProto) -> ModelProto:
    """The same graph without what only a debugger reads: in a small network names and traces outweigh the weights.

    Raises `ExportError` for a graph with branches or loops, and for one that is not valid ONNX.
    """
    graph = model.graph
    for node in graph.node:
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise ExportError(
                f"the exported graph has a branch or a loop ({node.op_type}); forward() must do the same every time"
            )
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    taken = frozenset(names)
    names |= {"": ""} | _share_equal_tensors(model, taken)
    for place, node in enumerate(graph.node):
        for index, output in enumerate(node.output):
            names.setdefault(output, free_name(f"t{place:x}_{index}" if index else f"t{place:x}", taken))
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        _drop_defaults(node)
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    _drop_unused_tensors(model)
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    graph.name, graph.doc_string = "g", ""
    model.producer_name, model.producer_version, model.doc_string = "autocompress", "", ""
    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    return model


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or one like it that is not `taken`: inputs and outputs are called as the network calls them."""
    while name in taken:
        name += "_"
    return name


def _share_equal_tensors(model: ModelProto, taken: Collection[str]) -> dict[str, str]:
    """Keeps one of each constant, under a short name. Gives the new name of every old one."""
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names = {}
    for tensor in tensors:
        content = numpy_helper.to_array(tensor)
        key = (tensor.data_type, tuple(tensor.dims), content.tobytes())
        if key not in kept:
            kept[key] = free_name(f"w{len(kept):x}", taken)
            model.graph.initializer.append(numpy_helper.from_array(content, kept[key]))
        names[tensor.name] = kept[key]
    return names


def _drop_unused_tensors(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    needed = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(needed)


def _drop_defaults(node: NodeProto) -> None:
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain).attributes
    needed = []
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        default = schema[attribute.name].default_value
        usual = helper.get_attribute_value(default) if default.type else None
        ones = attribute.name in ("strides", "dilations") and set(value) == {1}
        zeros = attribute.name == "pads" and not any(value)
        inferred = attribute.name == "kernel_shape" and node.op_type == "Conv"
        if not (value == usual or ones or zeros or inferred):
            needed.append(attribute)
    del node.attribute[:]
    node.attribute.extend(needed)
