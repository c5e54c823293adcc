"""A student in, an ONNX graph out: batch norm folded, integer codes and scales in place of rounded weights."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Set
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress import nested
from autocompress.errors import ExportError
from autocompress.graph import BatchNorm, module_of, norm_after, origin, runs_of, settle_attributes, tail, trace
from autocompress.nested import Nested
from autocompress.runtimes.onnx_codes import StoredWeight, changed, with_codes, with_pairs
from autocompress.runtimes.onnx_deployed import DeployedLayer, DeployedQuantizer, DynamicLayer, NegatedLayer
from autocompress.runtimes.onnx_slim import flatten_any_width, floats_at_load, slim
from autocompress.runtimes.onnx_template import from_template, keep_template
from autocompress.runtimes.slot import INPUT, output_names
from autocompress.student import (
    SMALLEST_SCALE,
    ActivationQuantizer,
    Plain,
    StudentLayer,
    channel_axis,
    kind_of,
    per_channel,
    plain_of,
)


def to_onnx(student: nn.Module, example: Nested) -> onnx.ModelProto:
    """The graph that computes what `student` computes, for any batch size; weights are int8 codes where they are rounded.

    `example` is a batch of shape (n, ...), n >= 2. Integer layers are QDQ pairs as ONNX Runtime fuses them. Inputs and
    outputs are called as `nested.named` does. Raises `ExportError`.
    """
    example = nested.each(Tensor.cpu, example)
    in_operators: set[str] = set()
    while True:
        deployed = _deployed(deepcopy(student).cpu().eval(), example, in_operators)
        exported = from_template(deployed.model, example)
        if exported is None:
            exported = flatten_any_width(with_pairs(_exported(deployed.model, example)))
            keep_template(deployed.model, example, exported)
        # A weight that torch has made something else of is exported once more, as codes that it can make nothing of.
        if not (lost := changed(exported, deployed.weights())):
            return slim(floats_at_load(with_codes(exported, deployed.stored)))
        in_operators |= lost


def _exported(model: nn.Module, example: Nested) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    in_order, by_name = nested.arguments(example)
    any_size: Any = {name: {0: batch} for name in by_name} or tuple({0: batch} for _ in in_order)
    try:
        with torch.no_grad():
            outputs = output_names(nested.call(model, example))
        with _silence():
            program = torch.onnx.export(
                model,
                in_order,
                kwargs=by_name or None,
                dynamo=True,
                opset_version=23,
                dynamic_shapes=any_size,
                input_names=list(nested.named(example, INPUT)),
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot export the student: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    assert program is not None
    if any(given.type.tensor_type.shape.dim[0].dim_value for given in program.model_proto.graph.input):
        raise ExportError(
            "the exported graph takes batches of one size only: forward() turns the batch size into a number, "
            "as len(x) does; write x.shape[0]"
        )
    return program.model_proto


@dataclass(frozen=True)
class _Deployed:
    """The network as torch is to export it; `stored` is what the file has for some of its tensors, by their names."""

    model: nn.Module
    stored: dict[str, StoredWeight]

    def weights(self) -> dict[str, NDArray[Any]]:
        tensors = self.model.state_dict()
        return {name: tensors[name].numpy() for name in self.stored}


def _deployed(student: nn.Module, example: Nested, in_operators: Set[str]) -> _Deployed:
    """`in_operators` has the names of weights that are to be operators on codes, whatever layer has them."""
    graph = trace(student, example)
    if graph is None:  # batch norm stays where it is, and there are no integer activations
        for name, module in list(student.named_modules()):
            if isinstance(module, StudentLayer):
                layer, _ = _deploy(module, None, None, of_matrices=False, rounded=False, as_floats=False)
                student.set_submodule(name, layer)
        return _Deployed(student, {})
    settle_attributes(graph)
    for node in graph.graph.nodes:
        if node.target is nn.functional.scaled_dot_product_attention:
            node.target = _written_out
    graph.recompile()
    ranks = _ranks(graph, example)
    deployed = _Deployed(graph, {})
    for node in list(graph.graph.nodes):
        module = module_of(node, graph)
        if isinstance(module, StudentLayer) or (isinstance(module, Plain) and kind_of(module) is not None):
            of_matrices = ranks.get(str(node.target), 2) > 2
            if f"{node.target}.weight" not in deployed.stored:  # it may be called twice
                _fold(node, module, deployed, graph, of_matrices=of_matrices, in_operators=in_operators)
        elif isinstance(module, ActivationQuantizer):
            graph.set_submodule(str(node.target), DeployedQuantizer(module))
    graph.graph.lint()
    graph.recompile()
    _tell_apart(deployed)
    return deployed


def _tell_apart(deployed: _Deployed) -> None:
    """Changes the last bit of stored weights that equal another tensor: torch would export one for both.

    What is in the file does not change with it.
    """
    tensors = {name: tensor.detach() for name, tensor in deployed.model.named_parameters() if tensor.dtype is torch.float32}
    known = {_content(tensor) for name, tensor in tensors.items() if name not in deployed.stored}
    for name in deployed.stored:
        first = tensors[name].view(torch.int32).view(-1)[:1]
        while first.numel() and _content(tensors[name]) in known:
            first += 1
        known.add(_content(tensors[name]))


def _content(tensor: Tensor) -> tuple[torch.Size, bytes]:
    return tensor.shape, tensor.numpy().tobytes()


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **others: Any
) -> Tensor:
    """What `scaled_dot_product_attention` computes, in five operations: torch exports it as twenty or more."""
    if dropout_p or any(others.values()):
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **others)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return nn.functional.softmax(scores, dim=-1) @ value


def _ranks(graph: GraphModule, example: Nested) -> dict[str, int]:
    """The number of dimensions of what each layer is given."""
    ranks: dict[str, int] = {}

    def note(name: str, given: tuple[Tensor, ...]) -> None:
        ranks[name] = given[0].dim()

    hooks = [
        graph.get_submodule(str(node.target)).register_forward_pre_hook(
            lambda _, given, name=str(node.target): note(name, given)
        )
        for node in graph.graph.nodes
        if isinstance(module_of(node, graph), StudentLayer)
    ]
    with torch.no_grad():
        nested.call(graph, nested.take(example, slice(2)))
    for hook in hooks:
        hook.remove()
    return ranks


def _fold(
    node: Node,
    layer: Plain | StudentLayer,
    deployed: _Deployed,
    graph: GraphModule,
    *,
    of_matrices: bool,
    in_operators: Set[str],
) -> None:
    quantizer = _quantizer_before(node, graph)
    rounded_after = all(isinstance(module_of(user, graph), ActivationQuantizer) for user in tail(node, graph).users)
    input_scale = None if quantizer is None else _input_scale(node, layer, quantizer, graph, rounded_after=rounded_after)
    norm_node = norm_after(node, graph)
    norm = module_of(norm_node, graph)
    runs = runs_of(node)
    if runs > 1:  # it has one weight, but as many input scales and batch norms as calls
        input_scale = norm = None
    elif norm_node is not None:
        norm_node.replace_all_uses_with(node)
        graph.graph.erase_node(norm_node)
    rounded = quantizer is not None and rounded_after
    name = f"{node.target}.{'negative.' if rounded and input_scale is None else ''}weight"
    as_floats = name not in in_operators
    module, stored = _deploy(layer, norm, input_scale, of_matrices=of_matrices, rounded=rounded, as_floats=as_floats)
    graph.set_submodule(str(node.target), module)
    if stored is not None:
        deployed.stored[name] = stored


def _quantizer_before(node: Node, graph: GraphModule) -> DeployedQuantizer | None:
    source = node.args[0]
    assert isinstance(source, Node)
    quantizer = module_of(origin(source, graph), graph)
    return quantizer if isinstance(quantizer, DeployedQuantizer) else None


def _input_scale(
    node: Node, layer: Plain | StudentLayer, quantizer: DeployedQuantizer, graph: GraphModule, *, rounded_after: bool
) -> Tensor | None:
    if not isinstance(layer, StudentLayer) or layer.activation_range != "static":
        return None  # it is computed in floats, also between two that are not, or has a kernel of its own
    plain = layer.layer
    if isinstance(plain, nn.Conv1d | nn.Conv2d) and plain.padding_mode != "zeros":  # the padding would stand between the two
        return None
    # With float outputs only a linear layer without ReLU has an integer kernel: turning codes into floats at load is faster.
    has_kernel = isinstance(plain, nn.Linear) and tail(node, graph) is node
    return quantizer.scale if has_kernel or rounded_after else None


def _deploy(
    layer: Plain | StudentLayer,
    norm: nn.Module | None,
    input_scale: Tensor | None,
    *,
    of_matrices: bool,
    rounded: bool,
    as_floats: bool,
) -> tuple[nn.Module, StoredWeight | None]:
    """The module to export, and what the file has for its weight when that is not what the module has."""
    plain = plain_of(layer)
    weight, bias = _norm_folded(layer, norm)
    stored = None
    # Float weights between rounded inputs and outputs are rounded to 8 bits by ONNX Runtime, unless the inputs' sign changes.
    negated = rounded
    if isinstance(layer, StudentLayer) and layer.bits is not None:
        codes, scale = layer.codes()
        gain = _norm_gain(norm)
        if gain is not None:
            codes = codes * per_channel(gain.sign().to(torch.int8), codes, layer.axis)
            scale = scale * per_channel(gain.abs(), scale)
        if layer.is_dynamic:
            return DynamicLayer(codes, scale, bias), None
        codes, scale = _with_room_for_bias(codes, scale, bias, input_scale)
        negated = rounded and input_scale is None
        if not (as_floats and _may_be_exported_as_floats(plain)):
            deployed = DeployedLayer(
                plain,
                codes,
                scale,
                bias,
                input_scale,
                of_matrices=of_matrices,
                group_size=layer.group_size,
                negated=negated,
            )
            return deployed, None
        weight = codes.float() * per_channel(scale.float(), codes, layer.axis)
        signed = -codes if negated else codes
        stored = StoredWeight(signed.numpy(), scale.numpy(), layer.axis, integer=input_scale is not None)
    folded = deepcopy(plain)
    folded.weight = nn.Parameter((-weight if negated else weight).contiguous())
    if not isinstance(folded, nn.Embedding):
        folded.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return NegatedLayer(folded) if negated else folded, stored


def _may_be_exported_as_floats(layer: Plain) -> bool:
    """Of other layers' weights torch may make others, with rows for columns for one; and some weights are computed."""
    computed = "weight" not in layer._parameters or layer._forward_pre_hooks or layer._forward_hooks
    return isinstance(layer, nn.modules.conv._ConvNd) and not computed


def _with_room_for_bias(codes: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and scales under which the bias fits into 32 bits.

    An integer kernel adds the bias in steps of input scale times weight scale. In a channel whose weights are (almost)
    all zero that step is too small for it: there the weights, which change nothing, give way.
    """
    if bias is None or input_scale is None:
        return codes, scale
    least = (bias.abs() / (input_scale * 2**30)).clamp_min(SMALLEST_SCALE)
    dead = scale < least
    return codes * per_channel((~dead).to(torch.int8), codes), torch.where(dead, least, scale)


def _norm_gain(norm: nn.Module | None) -> Tensor | None:
    if not isinstance(norm, BatchNorm) or norm.running_var is None:
        return None
    gain = (norm.running_var + norm.eps).rsqrt()
    return (gain * norm.weight).detach() if norm.affine else gain


def _norm_folded(layer: Plain | StudentLayer, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    weight = (layer.effective_weight() if isinstance(layer, StudentLayer) else layer.weight).detach()
    axis = channel_axis(plain_of(layer))
    own = None if isinstance(layer, nn.Embedding) else layer.bias
    bias = None if own is None else own.detach()
    gain = _norm_gain(norm)
    if gain is None:
        return weight, bias
    assert isinstance(norm, BatchNorm)
    assert norm.running_mean is not None
    shift = norm.bias.detach() if norm.affine else torch.zeros_like(norm.running_mean)
    start = torch.zeros_like(norm.running_mean) if bias is None else bias
    return weight * per_channel(gain, weight, axis), shift + gain * (start - norm.running_mean)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    # The exporter reports its progress and its optional extras; what matters to the user is in the exception.
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)
