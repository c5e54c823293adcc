"""The modules that stand for a student's while it is exported: they emit the operators that the file is to have."""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from autocompress.runtimes.onnx_codes import DOMAIN, ROUNDED
from autocompress.runtimes.onnx_slim import LOADED_CODES
from autocompress.student import ActivationQuantizer, Plain, apply_layer, channel_axis, per_channel, per_group


class DeployedQuantizer(nn.Module):
    """`ActivationQuantizer` as one operator, of which `onnx_codes.with_pairs` makes a QuantizeLinear / DequantizeLinear pair.

    Half of what torch takes to export a student are its operators that torch does not know.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        scale, zero_point = quantizer.grid()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, activation: Tensor) -> Tensor:
        inputs = [activation, self.scale, self.zero_point]
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{ROUNDED}", inputs, dtype=torch.float32, shape=activation.shape, version=1)


class DeployedLayer(nn.Module):
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


class DynamicLayer(nn.Module):
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


class NegatedLayer(nn.Module):
    """A layer of floats, `negative`, that is given inputs of the other sign, as its weights are."""

    def __init__(self, negative: nn.Module) -> None:
        super().__init__()
        self.negative = negative

    @property
    def weight(self) -> Tensor:
        return -cast(Tensor, self.negative.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.negative.bias)

    def forward(self, activation: Tensor) -> Tensor:
        outputs: Tensor = self.negative(-activation)
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
