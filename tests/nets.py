"""Layers of a few networks, written down by hand: no model is built."""

from autocompress.layer import Group, Layer, Layers


def vgg() -> Layers:
    """Three convolutions with a group each, and a classifier."""
    return Layers(
        layers=(
            _conv("conv1", 1, 64, 28 * 28, "conv1"),
            _conv("conv2", 64, 64, 14 * 14, "conv2"),
            _conv("conv3", 64, 100, 7 * 7, "conv3"),
            Layer(name="head", kind="linear", weight_shape=(10, 900), params=9010, macs=9000),
        ),
        groups=(
            Group(name="conv1", channels=64, writers=("conv1",), readers={"conv2": 1}),
            Group(name="conv2", channels=64, writers=("conv2",), readers={"conv3": 1}),
            Group(name="conv3", channels=100, writers=("conv3",), readers={"head": 9}),
        ),
    )


def resnet20() -> Layers:
    """Nineteen convolutions, of which those that write into one residual stream share a group; a branch a block."""
    layers = [_conv("conv1", 3, 16, 32 * 32, "conv1")]
    groups: list[Group] = []
    streams = {"conv1": ["conv1"]}
    stream, width = "conv1", 16
    for stage, (channels, side) in enumerate([(16, 32), (32, 16), (64, 8)], 1):
        for block in range(3):
            inner, outer = f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"
            if channels != width:
                stream = outer
                streams[stream] = []
            layers.append(_conv(inner, width, channels, side * side, inner))
            layers.append(_conv(outer, channels, channels, side * side, stream))
            branch = (inner, outer)
            groups.append(Group(name=inner, channels=channels, writers=(inner,), readers={outer: 1}, branch=branch))
            streams[stream].append(outer)
            width = channels
    layers.append(Layer(name="linear", kind="linear", weight_shape=(10, 64), params=650, macs=640))
    channels_of = {layer.name: layer.weight_shape[0] for layer in layers}
    groups += [
        Group(name=name, channels=channels_of[name], writers=tuple(writers), readers={}) for name, writers in streams.items()
    ]
    return Layers(layers=tuple(layers), groups=tuple(groups))


def one_linear() -> Layers:
    """The smallest network there is: one layer, first and last at once, nothing to prune."""
    return Layers(layers=(Layer(name="fc", kind="linear", weight_shape=(4, 8), params=36, macs=32),), groups=())


def _conv(name: str, inputs: int, outputs: int, positions: int, group: str) -> Layer:
    weights = outputs * inputs * 9
    return Layer(
        name=name,
        kind="conv2d",
        weight_shape=(outputs, inputs, 3, 3),
        params=weights + outputs,
        macs=weights * positions,
        group=group,
    )
