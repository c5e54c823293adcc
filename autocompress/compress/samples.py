"""What goes into a layer and what comes out of it, at some of the places where it is applied."""

import torch
from torch import Tensor, nn

Fitted = nn.Conv2d | nn.Linear

# Layers of few inputs are fitted to no fewer places than ones of so many.
_FEWEST_INPUTS = 128
# A bound on memory: 128 MB of sampled inputs.
_MOST_VALUES = 2**25


def extent(layer: Fitted, inputs: Tensor) -> tuple[int, ...]:
    """The shape of `inputs` without the channels: what the number of places depends on."""
    return tuple(inputs.shape[:1] + inputs.shape[2:] if isinstance(layer, nn.Conv2d) else inputs.shape[:-1])


def choose_places(layer: Fitted, outputs: Tensor, per_input: int) -> Tensor:
    """Numbers of some places (pixels of any example, or rows) of `outputs`, shape (places,): always the same ones.

    To refit the weights of `layer`: `per_input` for each input of an output, if there are so many.
    """
    count = outputs.numel() // outputs.shape[1 if isinstance(layer, nn.Conv2d) else -1]
    inputs = layer.weight[0].numel()
    wanted = max(per_input * _FEWEST_INPUTS, min(per_input * inputs, _MOST_VALUES // (inputs * _groups(layer))))
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:wanted].to(outputs.device)


def outputs_at(layer: Fitted, outputs: Tensor, places: Tensor) -> Tensor:
    """The outputs at these places, shape (places, out)."""
    if isinstance(layer, nn.Linear):
        return outputs.reshape(-1, outputs.shape[-1])[places]
    height, width = outputs.shape[2:]
    return outputs[places // (height * width), :, places // width % height, places % width]


def inputs_at(layer: Fitted, inputs: Tensor, places: Tensor) -> Tensor:
    """What the weights are multiplied by at these places, shape (groups, places, inputs of an output)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])[places][None]
    windows = _windows(layer, inputs)
    height, width = windows.shape[1:3]
    patches = windows[places // (height * width), places // width % height, places % width]
    return patches.reshape(len(places), layer.groups, -1).transpose(0, 1)


def by_group(layer: Fitted, values: Tensor) -> Tensor:
    """Shape (out, ...) as (groups, outputs of a group, the rest flattened)."""
    return values.reshape(_groups(layer), values.shape[0] // _groups(layer), -1)


def _groups(layer: Fitted) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _windows(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Every patch the kernel is laid on, shape (n, height, width, in, kernel height, kernel width): a view."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    examples, channels, *sides = padded.shape
    steps = padded.stride()
    counts = [
        (side - dilation * (kernel - 1) - 1) // stride + 1
        for side, dilation, kernel, stride in zip(sides, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    ]
    moves = [step * stride for step, stride in zip(steps[2:], layer.stride, strict=True)]
    within = [step * dilation for step, dilation in zip(steps[2:], layer.dilation, strict=True)]
    return padded.as_strided((examples, *counts, channels, *layer.kernel_size), (steps[0], *moves, steps[1], *within))
