"""What of a network can be compressed: its layers, and the channel groups that must be cut together."""

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from autocompress.errors import unknown_name
from autocompress.noun import Noun

Kind = Literal["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "embedding"]


class Layer(Noun):
    """One convolution, linear layer or embedding of the uncompressed network.

    `name` is the module path (`block1.conv`), `weight_shape` as torch stores it: (out, in, ...), of a transposed convolution
    (in, out, ...), of an embedding (words, out). `params` counts weight and bias, `macs` the multiply-accumulates for one
    example. `group` is the channel group its outputs belong to, None when they cannot be pruned. `integer` is False when
    what goes in and comes out cannot be rounded to 8 bits.
    """

    name: str
    kind: Kind
    weight_shape: tuple[int, ...]
    params: int
    macs: int
    group: str | None = None
    integer: bool = True

    @property
    def channels(self) -> tuple[int, int]:
        """How many outputs and inputs its weight counts; of a convolution in groups, the inputs of one group."""
        first, second = self.weight_shape[:2]
        return (second, first) if self.kind == "embedding" or self.kind.startswith("conv_transpose") else (first, second)


class Group(Noun):
    """Channels that can only be removed together.

    `name` is the first layer that writes them, `writers` all layers whose output channels are cut, `readers` all layers
    whose input channels are cut with them, and how many of their inputs come from one channel: several behind a flattening,
    none where a convolution in groups has fewer groups then. Beside them `extra_params` numbers go with each channel: of layer
    norms, of group norms, and of parameters of the network's own such as a class token.

    They go in blocks of `unit` neighbours: the channels of an attention head, of a group of a convolution or norm. `counts`
    are attributes of the network (``blocks.0.attention.heads``) that hold the number of blocks or of channels, and change
    with it.

    All of them can go where what is made of them is only added to something else: `branch` are the layers that then have
    nothing left to do, a residual branch of the network. It is empty where the network needs some of the channels.
    """

    name: str
    channels: int
    writers: tuple[str, ...]
    readers: dict[str, int]
    extra_params: int = 0
    unit: int = 1
    counts: tuple[str, ...] = ()
    branch: tuple[str, ...] = ()

    def multiple(self, channel_multiple: int) -> int:
        """What the number of channels that stay is to be a multiple of, on a target that is quick with `channel_multiple`."""
        return channel_multiple if self.unit == 1 else self.unit

    def extra_bytes(self, kept: int) -> int:
        """The bytes, in single precision, of the `extra_params` of so many channels."""
        return 4 * self.extra_params * kept


class Layers(Noun):
    """All layers in forward order, the groups that can be pruned, and what was left alone (name -> reason)."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    left_alone: dict[str, str] = {}

    def __iter__(self) -> Iterator[Layer]:  # type: ignore[override]  # pydantic iterates over fields; nobody wants that here
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _group_by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def layer(self, name: str) -> Layer:
        """Raises `UnknownNameError` with the nearest name."""
        try:
            return self._by_name[name]
        except KeyError:
            raise unknown_name("layer", name, self._by_name) from None

    def group(self, name: str) -> Group:
        """Raises `UnknownNameError` with the nearest name."""
        try:
            return self._group_by_name[name]
        except KeyError:
            raise unknown_name("channel group", name, self._group_by_name) from None

    @property
    def branches(self) -> tuple[str, ...]:
        """The groups whose branch can be left out."""
        return tuple(group.name for group in self.groups if group.branch)

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last layer: the two that are usually kept at 8 bits."""
        return self.layers[0].name, self.layers[-1].name
