"""The layers a compressed network is made of while it is fine-tuned: float weights, seen through a mask and a grid.

They hold what training changes (float weights, learned scales) and give what the exported file stores (integer codes,
scales). `autocompress.compress` puts them in, `autocompress.runtimes` reads them out.
"""

from typing import Any

import torch
from torch import Tensor, nn

# A scale never gets smaller: a channel of zeros would otherwise divide by zero.
SMALLEST_SCALE = 1e-8


def largest_code(bits: int) -> int:
    """The largest code of a symmetric grid of `bits` bits: 127 for 8, 1 for 2 (ternary weights)."""
    return int(2 ** (bits - 1)) - 1


def per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """`scale` of shape (out,) shaped to multiply a weight of shape (out, ...)."""
    return scale.view(-1, *[1] * (weight.dim() - 1))


class _LearnedStep(torch.autograd.Function):
    """Rounds a weight to its grid; passes gradients to the weight and to the scale (LSQ: Esser et al., 2020)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, largest: int) -> Tensor:
        step = per_channel(scale.clamp_min(SMALLEST_SCALE), weight)
        steps = weight / step
        codes = steps.round().clamp_(-largest, largest)
        ctx.save_for_backward(steps, codes)
        ctx.largest = largest
        return codes * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (steps, codes), largest = gradients, ctx.saved_tensors, ctx.largest
        # Zero beyond the grid. With comparisons and masks the same takes five times as long.
        within: Tensor = torch.ops.aten.hardtanh_backward(gradient, steps, -largest, largest)
        per_weight = codes - torch.ops.aten.hardtanh_backward(steps, steps, -largest, largest)
        damping = (steps[0].numel() * largest) ** -0.5
        return within, per_weight.mul_(gradient).sum(tuple(range(1, steps.dim()))).mul_(damping), None


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


def best_scales(weight: Tensor, bits: int) -> Tensor:
    """The scale of each output channel, shape (out,), that rounds `weight` with least squared error, of 48 tried."""
    largest = largest_code(bits)
    rows = weight.detach().flatten(1)
    widest = rows.abs().amax(1).clamp_min(SMALLEST_SCALE * largest)
    best, least = widest / largest, torch.full_like(widest, float("inf"))
    for share in torch.linspace(0.2, 1.0, 48).tolist():
        scale = (widest * share / largest).clamp_min(SMALLEST_SCALE)
        step = scale[:, None]
        error = ((rows / step).round().clamp(-largest, largest) * step - rows).square().sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


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
    """A convolution or linear layer that acts with masked and rounded weights.

    `mask` is None or a bool tensor of the weight's shape, False where the weight is zero; `bits` None keeps float
    weights, else `scale` of shape (out,) is the learned step of each output channel.
    """

    mask: Tensor | None
    scale: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, *, bits: int | None = None, mask: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.bits = bits
        self.register_buffer("mask", mask)
        self.scale = None if bits is None else nn.Parameter(best_scales(self._masked(), bits))

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that torch gives it
        if isinstance(self.layer, nn.Conv2d):
            weight = _laid_out_as(self.layer.weight, self.effective_weight())
            convolved: Tensor = self.layer._conv_forward(input, weight, self.layer.bias)
            return convolved
        return nn.functional.linear(input, self.effective_weight(), self.layer.bias)

    def effective_weight(self) -> Tensor:
        """The weight as it acts: masked and rounded. Same shape as `weight`."""
        weight = self._masked()
        if self.bits is None or self.scale is None:
            return weight
        rounded: Tensor = _LearnedStep.apply(weight, self.scale, largest_code(self.bits))  # type: ignore[no-untyped-call]
        return rounded

    def codes(self) -> tuple[Tensor, Tensor]:
        """What the file stores: int8 codes of the weight's shape and positive scales of shape (out,)."""
        if self.bits is None or self.scale is None:
            raise ValueError("a layer with float weights has no codes")
        weight, scale = self._masked().detach(), self.scale.detach().clamp_min(SMALLEST_SCALE)
        largest = largest_code(self.bits)
        return (weight / per_channel(scale, weight)).round().clamp(-largest, largest).to(torch.int8), scale

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
