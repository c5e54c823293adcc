"""The layers a compressed network is made of while it is fine-tuned: float weights, seen through a mask and a grid.

They hold what training changes (float weights, learned scales) and give what the exported file stores (integer codes,
scales). `autocompress.compress` puts them in, `autocompress.runtimes` reads them out.
"""

from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from autocompress.layer import Kind
from autocompress.target import ActivationRange

# A layer with one weight.
Plain = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear | nn.Embedding
)
_KINDS: dict[type[nn.Module], Kind] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
    nn.Embedding: "embedding",
}
_TRANSPOSED = {
    nn.ConvTranspose1d: nn.functional.conv_transpose1d,
    nn.ConvTranspose2d: nn.functional.conv_transpose2d,
    nn.ConvTranspose3d: nn.functional.conv_transpose3d,
}

# A scale never gets smaller: a channel of zeros would otherwise divide by zero.
SMALLEST_SCALE = 1e-8


def largest_code(bits: int) -> int:
    """The largest code of a symmetric grid of `bits` bits: 127 for 8, 1 for 2 (ternary weights)."""
    return int(2 ** (bits - 1)) - 1


def kind_of(module: nn.Module) -> Kind | None:
    """What kind of layer `module` is to compression; None when it is none, or computes in another way than torch's does."""
    for base, kind in _KINDS.items():
        if isinstance(module, base):
            changes_weights = isinstance(module, nn.Embedding) and module.max_norm is not None
            return None if changes_weights or type(module).forward is not base.forward else kind
    return None


def channel_axis(layer: nn.Module) -> int:
    """The dimension of the layer's weight that its outputs are counted in."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd | nn.Embedding) else 0


@overload
def plain_of(module: "Plain | StudentLayer") -> Plain: ...
@overload
def plain_of(module: nn.Module) -> nn.Module: ...
@overload
def plain_of(module: None) -> None: ...
def plain_of(module: nn.Module | None) -> nn.Module | None:
    """The layer that a student's layer stands for; any other module as it is."""
    return module.layer if isinstance(module, StudentLayer) else module


def apply_layer(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `layer`, which is `Plain`, would give for `inputs` with this weight and bias."""
    outputs: Tensor
    if isinstance(layer, nn.Linear):
        outputs = nn.functional.linear(inputs, weight, bias)
    elif isinstance(layer, nn.Embedding):
        outputs = nn.functional.embedding(inputs, weight, layer.padding_idx)
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        convolve: Any = next(function for kind, function in _TRANSPOSED.items() if isinstance(layer, kind))
        settings = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        outputs = convolve(inputs, weight, bias, *settings)
    else:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        outputs = layer._conv_forward(inputs, weight, bias)
    return outputs


def per_channel(scale: Tensor, weight: Tensor, axis: int = 0) -> Tensor:
    """`scale` of shape (out,) shaped to multiply a weight in which `axis` counts the outputs."""
    return scale.view([-1 if dimension == axis else 1 for dimension in range(weight.dim())])


def per_group(scale: Tensor, group_size: int, inputs: int) -> Tensor:
    """`scale` of shape (out, groups) for each weight, shape (out, inputs): the last group may be shorter than the others."""
    return scale.repeat_interleave(group_size, 1)[:, :inputs]


def _in_groups(weight: Tensor, group_size: int) -> Tensor:
    """A weight (out, in) as one row a group, (out * groups, group_size): the last of each output is filled up with zeros."""
    missing = -weight.shape[1] % group_size
    return (nn.functional.pad(weight, (0, missing)) if missing else weight).reshape(-1, group_size)


class _LearnedStep(torch.autograd.Function):
    """Rounds a weight to its grid; passes gradients to the weight and to the scale (LSQ: Esser et al., 2020)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, largest: int, axis: int) -> Tensor:
        step = per_channel(scale.clamp_min(SMALLEST_SCALE), weight, axis)
        steps = weight / step
        codes = steps.round().clamp_(-largest, largest)
        ctx.save_for_backward(steps, codes)
        ctx.largest, ctx.axis = largest, axis
        return codes * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (steps, codes), largest, axis = gradients, ctx.saved_tensors, ctx.largest, ctx.axis
        # Zero beyond the grid. With comparisons and masks the same takes five times as long.
        within: Tensor = torch.ops.aten.hardtanh_backward(gradient, steps, -largest, largest)
        per_weight = codes - torch.ops.aten.hardtanh_backward(steps, steps, -largest, largest)
        damping = (steps.numel() // steps.shape[axis] * largest) ** -0.5
        others = tuple(dimension for dimension in range(steps.dim()) if dimension != axis)
        return within, per_weight.mul_(gradient).sum(others).mul_(damping), None, None


class _FixedStep(torch.autograd.Function):
    """Rounds an activation to 256 steps; gradients pass where it lies between the first and the last.

    What `torch.fake_quantize_per_tensor_affine` does, in a quarter of the time on a CPU. The grid is computed in float32
    whatever the activation is: half precision rounds after every operation, and takes longer.
    """

    @staticmethod
    def forward(ctx: Any, activation: Tensor, scale: float, zero_point: int) -> Tensor:
        low, high = -zero_point, 255 - zero_point
        ctx.save_for_backward(activation)
        ctx.range = low * scale, high * scale
        wide = activation.dtype is torch.float32
        steps = activation.div(scale) if wide else activation.float().div_(scale)
        return steps.round_().clamp_(low, high).mul_(scale).to(activation.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (activation,) = gradients, ctx.saved_tensors
        passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, activation, *ctx.range)
        return passed, None, None


def best_scales(weight: Tensor, bits: int, axis: int = 0, group_size: int | None = None) -> Tensor:
    """The scale of each output, shape (out,), that rounds `weight` with least squared error, of 48 tried.

    `axis` is the dimension in which outputs are counted. With `group_size`, of a weight (out, in), that of each so many
    inputs of each output: shape (out, groups).
    """
    if group_size is not None:
        return best_scales(_in_groups(weight, group_size), bits).view(len(weight), -1)
    largest = largest_code(bits)
    rows = weight.detach().movedim(axis, 0).flatten(1)
    widest = rows.abs().amax(1).clamp_min(SMALLEST_SCALE * largest)
    best, least = widest / largest, torch.full_like(widest, float("inf"))
    for share in torch.linspace(0.2, 1.0, 48).tolist():
        scale = (widest * share / largest).clamp_min(SMALLEST_SCALE)
        step = scale[:, None]
        error = ((rows / step).round().clamp(-largest, largest) * step - rows).square().sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def rounded_by_its_range(activation: Tensor) -> Tensor:
    """An activation rounded to 256 steps between its own smallest and largest value, as DynamicQuantizeLinear does."""
    low, high = activation.detach().float().aminmax()
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low).clamp_min(SMALLEST_SCALE) / 255
    zero_point = round(float((-low / scale).round()))
    rounded: Tensor = _FixedStep.apply(activation, float(scale), zero_point)  # type: ignore[no-untyped-call]
    return rounded


def _laid_out_as(example: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` with the strides of `example`: by them a convolution chooses the layout of its outputs.

    Arithmetic forgets the strides of dimensions of size 1, and a network of which one half is in another layout than the
    other takes half as long again.
    """
    return tensor if tensor.stride() == example.stride() else torch.empty_like(example).copy_(tensor)


def only_input(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What a layer is called with, by position or by the name that torch gives it; None when that is not all."""
    given = [*arguments, *keywords.values()]
    return given[0] if len(given) == 1 and keywords.keys() <= {"input"} else None


class StudentLayer(nn.Module):
    """A layer that acts with masked and rounded weights.

    `mask` is None or a bool tensor of the weight's shape, False where the weight is zero; `bits` None keeps float
    weights, else `scale` of shape (out,) is the learned step of each output channel, which `axis` of the weight counts.
    With `group_size`, of linear layers, it is that of each so many inputs of each output, shape (out, groups). What goes in is
    rounded to 8 bits by whoever is before it, where `activation_range` is "static", by the range of each batch ("dynamic"), or
    not at all (None).
    """

    mask: Tensor | None
    scale: nn.Parameter | None

    def __init__(
        self,
        layer: Plain,
        *,
        bits: int | None = None,
        mask: Tensor | None = None,
        group_size: int | None = None,
        activation_range: ActivationRange | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.axis = channel_axis(layer)
        self.bits = bits
        self.group_size = group_size
        self.activation_range = activation_range
        self.register_buffer("mask", mask)
        self.scale = None if bits is None else nn.Parameter(self.best_scales(self._masked()))

    @property
    def is_dynamic(self) -> bool:
        return self.activation_range == "dynamic"

    @property
    def weight(self) -> Tensor:
        """The weight as it acts, for a forward function that reads it: to multiply by it once more, say."""
        # In a graph it stands for whatever the layer will then have for its weight.
        traced = isinstance(cast(Any, self.layer.weight), Proxy)
        return self.layer.weight if traced else self.effective_weight()

    @property
    def bias(self) -> Tensor | None:
        return None if isinstance(self.layer, nn.Embedding) else self.layer.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that torch gives it
        weight = self.effective_weight()
        if weight.dim() == 4:
            weight = _laid_out_as(self.layer.weight, weight)
        return apply_layer(self.layer, rounded_by_its_range(input) if self.is_dynamic else input, weight, self.bias)

    def effective_weight(self) -> Tensor:
        """The weight as it acts: masked and rounded. Same shape as `weight`."""
        weight = self._masked()
        if self.bits is None or self.scale is None:
            return weight
        largest = largest_code(self.bits)
        if self.group_size is None:
            rounded: Tensor = _LearnedStep.apply(weight, self.scale, largest, self.axis)  # type: ignore[no-untyped-call]
            return rounded
        rows: Tensor = _LearnedStep.apply(_in_groups(weight, self.group_size), self.scale.flatten(), largest, 0)  # type: ignore[no-untyped-call]
        return rows.view(len(weight), -1)[:, : weight.shape[1]]

    def codes(self) -> tuple[Tensor, Tensor]:
        """What the file stores: int8 codes of the weight's shape and positive scales of the shape of `scale`."""
        if self.bits is None or self.scale is None:
            raise ValueError("a layer with float weights has no codes")
        weight, scale = self._masked().detach(), self.scale.detach().clamp_min(SMALLEST_SCALE)
        largest = largest_code(self.bits)
        return (weight / self.steps(scale)).round().clamp(-largest, largest).to(torch.int8), scale

    def steps(self, scale: Tensor) -> Tensor:
        """Scales of the shape of `scale`, shaped to multiply the weight."""
        if self.group_size is None:
            return per_channel(scale, self.layer.weight, self.axis)
        return per_group(scale, self.group_size, self.layer.weight.shape[1])

    def best_scales(self, weight: Tensor) -> Tensor:
        """Those that round `weight`, as the layer's in shape, with least error; see the function of that name."""
        assert self.bits is not None
        return best_scales(weight, self.bits, self.axis, self.group_size)

    def _masked(self) -> Tensor:
        return self.layer.weight if self.mask is None else self.layer.weight * self.mask


class ActivationQuantizer(nn.Module):
    """Rounds an activation to 256 steps between the smallest and the largest value seen while observing.

    It observes, and passes values on as they are, until `observing` is set to False. An activation that was never
    negative gets zero point 0: only then does ONNX Runtime fuse the ReLU before it.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.observing = True
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def grid(self) -> tuple[float, int]:
        """The scale and the zero point (0..255)."""
        low, high = float(self.low), float(self.high)
        scale = max(high - low, SMALLEST_SCALE) / 255
        return scale, round(-low / scale)

    def forward(self, activation: Tensor) -> Tensor:
        if self.observing:
            self.low.copy_(torch.minimum(self.low, activation.detach().amin()))
            self.high.copy_(torch.maximum(self.high, activation.detach().amax()))
            return activation
        scale, zero_point = self.grid()
        rounded: Tensor = _FixedStep.apply(activation, scale, zero_point)  # type: ignore[no-untyped-call]
        return rounded
