"""One thing that can be done to one group or layer: what sensitivities and costs are measured by."""

from collections.abc import Iterator
from typing import Literal

from autocompress.layer import Layers
from autocompress.noun import Noun
from autocompress.policy import Finetune, LayerPolicy, Policy, kept_channels
from autocompress.target import Menu

What = Literal["channel_sparsity", "weight_bits", "weight_sparsity", "activation_bits"]

# Shares of zeros that are tried; between them divergence is interpolated.
SPARSITIES = (0.25, 0.5, 0.7, 0.85)
# Of the channel counts of a wide group so many, evenly spread, are tried.
_MOST_COUNTS = 12


class Option(Noun):
    """`what` of the group or layer `name` at `value` (a share, or a number of bits), and nothing else.

    8-bit activations need integer weights: that option is 8-bit weights and activations of the layer.
    """

    what: What
    name: str
    value: float

    def policy(self) -> Policy:
        """The policy that does this alone, without fine-tuning."""
        still = Finetune(steps=0)
        match self.what:
            case "channel_sparsity":
                return Policy(channel_sparsity={self.name: self.value}, finetune=still)
            case "weight_sparsity":
                layer = LayerPolicy(weight_sparsity=self.value)
            case "weight_bits":
                layer = LayerPolicy(weight_bits=int(self.value))
            case "activation_bits":
                layer = LayerPolicy(weight_bits=8, activation_bits=8)
        return Policy(layers={self.name: layer}, finetune=still)


def options(layers: Layers, menu: Menu) -> tuple[Option, ...]:
    """The options of the network on the menu: groups at up to twelve channel counts, layers at each width and some sparsities.

    Branches are left out too.
    """
    return tuple(_options(layers, menu))


def _options(layers: Layers, menu: Menu) -> Iterator[Option]:
    for group in layers.groups:
        for share in _spread(channel_shares(group.channels, group.multiple(menu.channel_multiple))):
            yield Option(what="channel_sparsity", name=group.name, value=share)
        if group.branch:
            yield Option(what="channel_sparsity", name=group.name, value=1.0)
    for layer in layers:
        for bits in menu.weight_bits:
            if bits is not None:
                yield Option(what="weight_bits", name=layer.name, value=bits)
        if menu.weight_sparsity:
            for share in SPARSITIES:
                yield Option(what="weight_sparsity", name=layer.name, value=share)
        integer = layer.integer and layer.kind in menu.integer_kinds
        if 8 in menu.activation_bits and 8 in menu.weight_bits and integer:
            yield Option(what="activation_bits", name=layer.name, value=8)


def _spread(shares: list[float]) -> list[float]:
    """So many of them at most, the first and the last among them."""
    if len(shares) <= _MOST_COUNTS:
        return shares
    step = (len(shares) - 1) / (_MOST_COUNTS - 1)
    return [shares[round(step * place)] for place in range(_MOST_COUNTS)]


def channel_shares(channels: int, multiple: int) -> list[float]:
    """The shares that leave each channel count a policy can ask for, fewest removed first, none removed left out."""
    kept = {kept_channels(channels, removed / channels, multiple) for removed in range(channels)} - {channels}
    return [1 - count / channels for count in sorted(kept, reverse=True)]
