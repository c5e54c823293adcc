"""A student in, an ONNX graph out: batch norm folded, integer codes and scales in place of rounded weights."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress import nested
from autocompress.errors import ExportError
from autocompress.graph import BatchNorm, module_of, norm_after, origin, settle_attributes, tail, trace
from autocompress.nested import Nested
from autocompress.runtimes.onnx_slim import LOADED_CODES, flatten_any_width, floats_at_load, slim
from autocompress.runtimes.onnx_template import from_template, keep_template
from autocompress.runtimes.slot import INPUT, OUTPUT
from autocompress.student import (
    SMALLEST_SCALE,
    ActivationQuantizer,
    Plain,
    StudentLayer,
    apply_layer,
    channel_axis,
    kind_of,
    per_channel,
    per_group,
)


def to_onnx(student: nn.Module, example: Nested) -> onnx.ModelProto:
    """The graph that computes what `student` computes, for any batch size; weights are int8 codes where they are rounded.

    `example` is a batch of shape (n, ...), n >= 2. Integer layers are QDQ pairs as ONNX Runtime fuses them. Inputs and
    outputs are called as `nested.named` does. Raises `ExportError`.
    """
    example = nested.each(Tensor.cpu, example)
    model = _deployed(deepcopy(student).cpu().eval(), example)
    exported = from_template(model, example)
    if exported is None:
        exported = flatten_any_width(_exported(model, example))
        keep_template(model, example, exported)
    return slim(floats_at_load(exported))


def _exported(model: nn.Module, example: Nested) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    in_order, by_name = nested.arguments(example)
    any_size: Any = {name: {0: batch} for name in by_name} or tuple({0: batch} for _ in in_order)
    try:
        with torch.no_grad():
            outputs = nested.named(nested.call(model, example), OUTPUT)
        with _silence():
            program = torch.onnx.export(
                model,
                in_order,
                kwargs=by_name or None,
                dynamo=True,
                opset_version=23,
                dynamic_shapes=any_size,
                input_names=list(nested.named(example, INPUT)),
                output_names=list(outputs),
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


class _DeployedQuantizer(nn.Module):
    """`ActivationQuantizer` as a QuantizeLinear / DequantizeLinear pair."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        scale, zero_point = quantizer.grid()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, activation: Tensor) -> Tensor:
        rounded = _onnx("QuantizeLinear", [activation, self.scale, self.zero_point], activation.shape, torch.uint8)
        return _onnx("DequantizeLinear", [rounded, self.scale, self.zero_point], activation.shape, torch.float32)


class _DeployedLayer(nn.Module):
    """A layer whose weight is stored as codes and scales, batch norm folded in.

    With `input_scale` (a scalar) the codes stay integers until the runtime fuses them with the layer. Without it they
    become floats once, when the file is loaded (`floats_at_load`). A linear layer that is given more than one vector an
    example is a product of matrices: that has a kernel of its own, and a float bias. Of `group_size` inputs each, codes
    have scales of shape (out, groups), and always become floats. `negated`, both codes and inputs change their sign.
    """

    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None
    bias_scale: Tensor

    def __init__(
        self,
        layer: Plain,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        input_scale: Tensor | None,
        *,
        of_matrices: bool,
        group_size: int | None,
        negated: bool,
    ) -> None:
        super().__init__()
        self.layer = _without_parameters(layer)
        self.axis = channel_axis(layer) if group_size is None else 1
        self.group_size = group_size
        self.negated = negated
        self.integer = input_scale is not None
        # ONNX Runtime fuses a Gemm only if its weight has a zero point and its bias is int32; a Conv does without.
        self.is_linear = isinstance(layer, nn.Linear)
        self.of_matrices = of_matrices and self.is_linear and self.integer
        self.integer_bias = bias is not None and self.is_linear and input_scale is not None and not of_matrices
        if self.integer_bias:
            assert bias is not None
            assert input_scale is not None
            self.register_buffer("bias_scale", scale * input_scale)
            bias = (bias / self.bias_scale).round().clamp(-(2**31), 2**31 - 1).to(torch.int32)
        self.register_buffer("codes" if self.integer else LOADED_CODES, -codes if negated else codes)
        self.register_buffer("scale", scale)
        if self.integer and self.is_linear:
            self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int8))
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        """What the user's forward reads who asks a layer for its weight: of which type it is, say."""
        codes = self.get_buffer("codes" if self.integer else LOADED_CODES)
        floats = -codes.float() if self.negated else codes.float()
        if self.group_size is not None:
            return floats * per_group(self.scale, self.group_size, codes.shape[1])
        return floats * per_channel(self.scale, codes, self.axis)

    def forward(self, activation: Tensor) -> Tensor:
        codes = self.get_buffer("codes" if self.integer else LOADED_CODES)
        inputs = [codes, self.scale, *([self.zero_point] if self.integer and self.is_linear else [])]
        if self.of_matrices:
            inputs[0] = codes.T
            columns = _onnx("DequantizeLinear", inputs, inputs[0].shape, torch.float32, axis=1)
            product = activation @ columns
            return product if self.bias is None else product + self.bias
        weight = _onnx("DequantizeLinear", inputs, codes.shape, torch.float32, axis=self.axis, block_size=self.group_size)
        bias = self.bias
        if self.integer_bias and bias is not None:
            bias = _onnx("DequantizeLinear", [bias, self.bias_scale], bias.shape, torch.float32, axis=0)
        return apply_layer(self.layer, -activation if self.negated else activation, weight, bias)


class _DynamicLayer(nn.Module):
    """A linear layer of integer codes (in, out) whose inputs are rounded by the range of each batch; its outputs are floats."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes.T.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        return (self.codes.float() * self.scale).T

    def forward(self, activation: Tensor) -> Tensor:
        rounded, step, zero_point = torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear",
            [activation],
            dtypes=[torch.uint8, torch.float32, torch.uint8],
            shapes=[activation.shape, [], []],
            version=23,
        )
        shape = torch.Size([*activation.shape[:-1], self.codes.shape[1]])
        sums = _onnx("MatMulInteger", [rounded, self.codes, zero_point], shape, torch.int32)
        product = sums.to(torch.float32) * (step * self.scale)
        return product if self.bias is None else product + self.bias


class _NegatedLayer(nn.Module):
    """A layer of floats that is given inputs of the other sign, as its weights are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return -cast(Tensor, self.layer.weight)

    def forward(self, activation: Tensor) -> Tensor:
        outputs: Tensor = self.layer(-activation)
        return outputs


def _without_parameters(layer: Plain) -> Plain:
    """The layer's settings alone: its parameters must not be exported."""
    settings = deepcopy(layer)
    for name in list(settings._parameters):
        settings.register_parameter(name, None)
    return settings


def _onnx(operator: str, inputs: list[Tensor], shape: torch.Size, dtype: torch.dtype, **attributes: int | None) -> Tensor:
    """`operator` with those of `attributes` that are not None."""
    given: dict[str, Any] = {name: value for name, value in attributes.items() if value is not None}
    return torch.onnx.ops.symbolic(operator, inputs, given, dtype=dtype, shape=shape, version=23)


def _deployed(student: nn.Module, example: Nested) -> nn.Module:
    graph = trace(student, example)
    if graph is None:  # batch norm stays where it is, and there are no integer activations
        for name, module in list(student.named_modules()):
            if isinstance(module, StudentLayer):
                student.set_submodule(name, _deploy(module, None, None, of_matrices=False, rounded=False))
        return student
    settle_attributes(graph)
    for node in graph.graph.nodes:
        if node.target is nn.functional.scaled_dot_product_attention:
            node.target = _written_out
    graph.recompile()
    ranks = _ranks(graph, example)
    for node in list(graph.graph.nodes):
        module = module_of(node, graph)
        if isinstance(module, StudentLayer) or (isinstance(module, Plain) and kind_of(module) is not None):
            _fold(node, module, graph, of_matrices=ranks.get(str(node.target), 2) > 2)
        elif isinstance(module, ActivationQuantizer):
            graph.set_submodule(str(node.target), _DeployedQuantizer(module))
    graph.graph.lint()
    graph.recompile()
    return graph


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


def _fold(node: Node, layer: Plain | StudentLayer, graph: GraphModule, *, of_matrices: bool) -> None:
    quantizer = _quantizer_before(node, graph)
    rounded_after = all(isinstance(module_of(user, graph), ActivationQuantizer) for user in tail(node, graph).users)
    input_scale = None if quantizer is None else _input_scale(node, layer, quantizer, graph, rounded_after=rounded_after)
    norm_node = norm_after(node, graph)
    norm = module_of(norm_node, graph)
    called = sum(other.op == "call_module" and other.target == node.target for other in graph.graph.nodes)
    if called > 1:  # it has one weight, but as many input scales and batch norms as calls
        input_scale = norm = None
    elif norm_node is not None:
        norm_node.replace_all_uses_with(node)
        graph.graph.erase_node(norm_node)
    deployed = _deploy(layer, norm, input_scale, of_matrices=of_matrices, rounded=quantizer is not None and rounded_after)
    graph.set_submodule(str(node.target), deployed)


def _quantizer_before(node: Node, graph: GraphModule) -> _DeployedQuantizer | None:
    source = node.args[0]
    assert isinstance(source, Node)
    quantizer = module_of(origin(source, graph), graph)
    return quantizer if isinstance(quantizer, _DeployedQuantizer) else None


def _input_scale(
    node: Node, layer: Plain | StudentLayer, quantizer: _DeployedQuantizer, graph: GraphModule, *, rounded_after: bool
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
    layer: Plain | StudentLayer, norm: nn.Module | None, input_scale: Tensor | None, *, of_matrices: bool, rounded: bool
) -> nn.Module:
    plain = layer.layer if isinstance(layer, StudentLayer) else layer
    if isinstance(layer, StudentLayer) and layer.bits is not None:
        codes, scale = layer.codes()
        _, bias = _norm_folded(layer, norm)
        gain = _norm_gain(norm)
        if gain is not None:
            codes = codes * per_channel(gain.sign().to(torch.int8), codes, layer.axis)
            scale = scale * per_channel(gain.abs(), scale)
        if layer.is_dynamic:
            return _DynamicLayer(codes, scale, bias)
        codes, scale = _with_room_for_bias(codes, scale, bias, input_scale)
        return _DeployedLayer(
            plain,
            codes,
            scale,
            bias,
            input_scale,
            of_matrices=of_matrices,
            group_size=layer.group_size,
            negated=rounded and input_scale is None,
        )
    weight, bias = _norm_folded(layer, norm)
    folded = deepcopy(plain)
    # Float weights between rounded inputs and outputs are rounded to 8 bits by ONNX Runtime, unless the inputs' sign changes.
    folded.weight = nn.Parameter(-weight if rounded else weight)
    if not isinstance(folded, nn.Embedding):
        folded.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return _NegatedLayer(folded) if rounded else folded


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
    axis = channel_axis(layer.layer if isinstance(layer, StudentLayer) else layer)
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
