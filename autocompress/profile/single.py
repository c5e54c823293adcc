"""What each layer costs by itself: timed in a file of its own, and stored in every form."""

import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.compress.weights import largest_weights
from autocompress.lane import Lane
from autocompress.measure import SLOW
from autocompress.option import SPARSITIES
from autocompress.profile.layers import Use
from autocompress.runtimes import Runtime, Session, runtime_of
from autocompress.runtimes.single import LayerShape, Manner, SingleLayer
from autocompress.student import Plain, best_scales, channel_axis, largest_code, per_channel
from autocompress.tables import Beside, Form, LayerCosts, Storage
from autocompress.target import Target

# The least of runs in some sessions, further ones only as long as the machine seems to be slow at the time: the reference,
# the largest of all layers, then takes that much longer than it can.
_SESSIONS, _MOST_SESSIONS = 2, 6
_PASSES = 2
_REFERENCE_RUNS = 5
_RUNS = 40
_FEWEST_RUNS = 3
_SECONDS = 0.004
# So much slower than a wider one a layer can be: 8 outputs take ONNX Runtime 1.6 times as long as 16 on some CPUs.
_SLOWER = 2.0
# Files timed before those who train are let by.
_PORTION = 16
# Of larger tensors some output channels tell how many weights are rounded to zero.
_WEIGHTS = 2**16

# What a runtime does for each file is timed by one that hardly computes.
_NOTHING = LayerShape("linear", 1, 1, size=(1,))

Times = dict[tuple[LayerShape, Manner], float]
Grid = tuple[tuple[float, ...], ...]


def layer_costs(model: nn.Module, found: Sequence[Use], target: Target, lane: Lane) -> tuple[LayerCosts, ...]:
    """The costs of every layer of `model`, before anything is fitted to whole policies.

    A layer that cannot be timed alone counts by its multiply-accumulates: as those of the others, or a million a
    millisecond where the runtime makes no files of single layers.
    """
    runtime = runtime_of(target)
    timed = [] if runtime.single is None else [use for use in found if use.shapes]
    times = _times(timed, runtime, target, lane) if timed else {}
    spent = sum(times[shape, "float"] for use in timed for shape in use.shapes)
    rate = spent / max(1, sum(use.layer.macs for use in timed)) if timed else 1e-6
    return tuple(_costs(use, model.get_submodule(use.layer.name), runtime.single, times, rate, target, lane) for use in found)


def _costs(
    use: Use, module: nn.Module, single: SingleLayer | None, times: Times, rate: float, target: Target, lane: Lane
) -> LayerCosts:
    assert isinstance(module, Plain)
    menu = target.menu
    integer = 8 in menu.activation_bits and use.has_integer_kernel
    with lane.shared():
        storage = [
            _storage(module, bits, single, zeros=menu.weight_sparsity) for bits in {None: 0} | dict.fromkeys(menu.weight_bits)
        ]
        beside = [_beside(use, manner, single) for manner in ("float", "codes", "integer")]
        group_bytes = _more_than_codes(use, "groups", single) if menu.group_sizes else 0
        dynamic_bytes = _more_than_codes(use, "dynamic", single) if "dynamic" in menu.activation_ranges else 0
    return LayerCosts(
        name=use.layer.name,
        inputs=use.inputs,
        outputs=use.outputs,
        float_ms=_grid(use, "float", times, rate),
        int8_ms=_grid(use, "integer", times, rate) if integer else (),
        weights=module.weight.numel(),
        storage=tuple(storage),
        floats=beside[0],
        codes=beside[1],
        integer=beside[2],
        group_bytes=group_bytes,
        dynamic_bytes=dynamic_bytes,
    )


def _grid(use: Use, manner: Manner, times: Times, rate: float) -> Grid:
    """Milliseconds at every point of the layer's grid; `rate` is that of one multiply-accumulate."""

    def ms(inputs: int, outputs: int) -> float:
        if not times or not use.shapes:
            full = use.inputs[-1] * use.outputs[-1]
            return use.layer.macs * inputs * outputs / full * rate
        return sum(times[shape.at(inputs, outputs), manner] for shape in use.shapes)

    return without_slow_moments([[ms(inputs, outputs) for outputs in use.outputs] for inputs in use.inputs])


def without_slow_moments(times: Sequence[Sequence[float]]) -> Grid:
    """Times over ascending input and output channels, none much longer than that of a wider layer.

    Whatever disturbs a timing makes it longer; a layer a little slower than a wider one may be real (an odd width).
    """
    grid = np.array(times)
    wider = np.minimum.accumulate(np.minimum.accumulate(grid[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
    return tuple(map(tuple, np.minimum(grid, _SLOWER * wider).tolist()))


def _times(found: Sequence[Use], runtime: Runtime, target: Target, lane: Lane) -> Times:
    """The least milliseconds of each different file, less what a file takes that does nothing.

    Those are timed once more of which it turns out later that the machine was slow at the time.
    """
    assert runtime.single is not None
    wanted = list(dict.fromkeys(_files(found, target)))
    with lane.shared():
        largest = max(found, key=lambda use: use.layer.macs)
        reference = _Reference(runtime, *runtime.single.file(largest.shapes[0], "float"), target)
    times, readings = dict.fromkeys(wanted, float("inf")), dict.fromkeys(wanted, float("inf"))
    for _ in range(_PASSES):
        pending = [key for key in wanted if reference.was_slow(readings[key])]
        for start in range(0, len(pending), _PORTION):
            portion = pending[start : start + _PORTION]
            with lane.shared():
                files = [runtime.single.file(*key) for key in portion]
            with lane.exclusive():
                for key, (content, inputs) in zip(portion, files, strict=True):
                    ms, readings[key] = _undisturbed_ms(runtime, content, inputs, target, reference)
                    times[key] = min(times[key], ms)
    # A file that does something takes no less than one that does nothing, so all of them tell how little that is at most.
    nothing = {manner: min(ms for (_, other), ms in times.items() if other == manner) for _, manner in wanted}
    return {(shape, manner): ms - nothing[manner] for (shape, manner), ms in times.items()}


class _Reference:
    """A file of which is known how long it takes when nothing else goes on: the least so far."""

    def __init__(self, runtime: Runtime, content: bytes, inputs: NDArray[Any], target: Target) -> None:
        self._session, self._inputs = runtime.load(content, target), inputs
        self._least = float("inf")
        self.read()

    def read(self) -> float:
        """The seconds that it takes at the moment."""
        now = min(_seconds(self._session, self._inputs) for _ in range(_REFERENCE_RUNS))
        self._least = min(self._least, now)
        return now

    def was_slow(self, seconds: float) -> bool:
        """Whether it has taken `seconds` only because the machine was slow, by what is known now."""
        return seconds > SLOW * self._least


def _undisturbed_ms(
    runtime: Runtime, content: bytes, inputs: NDArray[Any], target: Target, reference: _Reference
) -> tuple[float, float]:
    """The least milliseconds of a file, and the seconds that the reference took at the time."""
    least = float("inf")
    for done in range(1, _MOST_SESSIONS + 1):
        least = min(least, _least_ms(runtime, content, inputs, target))
        reading = reference.read()
        if done >= _SESSIONS and not reference.was_slow(reading):
            break
    return least, reading


def _seconds(session: Session, inputs: NDArray[Any]) -> float:
    start = time.perf_counter()
    session(inputs)
    return time.perf_counter() - start


def _files(found: Sequence[Use], target: Target) -> Iterator[tuple[LayerShape, Manner]]:
    manners: list[Manner] = ["float", "integer"] if 8 in target.menu.activation_bits else ["float"]
    for manner in manners:
        yield _NOTHING, manner
        for use in found:
            if manner == "integer" and not use.has_integer_kernel:
                continue
            for shape, inputs, outputs in product(use.shapes, use.inputs, use.outputs):
                yield shape.at(inputs, outputs), manner


def _least_ms(runtime: Runtime, content: bytes, inputs: NDArray[Any], target: Target) -> float:
    session = runtime.load(content, target)
    session(inputs)
    least, runs = float("inf"), 0
    deadline = time.perf_counter() + _SECONDS
    while runs < _RUNS and (runs < _FEWEST_RUNS or time.perf_counter() < deadline):
        least = min(least, _seconds(session, inputs))
        runs += 1
    return least * 1e3


def _storage(layer: Plain, bits: int | None, single: SingleLayer | None, *, zeros: bool) -> Storage:
    sparsities = (0.0, *SPARSITIES) if zeros else (0.0,)
    rounded = [_rounded(layer, bits, sparsity) for sparsity in sparsities]
    # The one with most zeros: the forms of zeros are among its own.
    forms = (Form(fixed=0, number=(bits or 32) / 8, nonzero=0),) if single is None else single.forms(rounded[-1])
    return Storage(
        bits=bits, forms=forms, sparsities=sparsities, zeros=tuple(float((weights == 0).mean()) for weights in rounded)
    )


def _rounded(layer: Plain, bits: int | None, sparsity: float) -> NDArray[Any]:
    """The weights as they are stored, of all output channels or of enough of them, evenly picked."""
    weight = layer.weight.detach().movedim(channel_axis(layer), 0)
    step = -(-weight.numel() // _WEIGHTS)
    masked = (weight * largest_weights(weight, sparsity))[::step]
    if bits is None:
        floats: NDArray[Any] = masked.numpy()
        return floats
    largest, scale = largest_code(bits), per_channel(best_scales(masked, bits), masked)
    codes: NDArray[Any] = (masked / scale).round().clamp(-largest, largest).to(torch.int8).numpy()
    return codes


def _beside(use: Use, manner: Manner, single: SingleLayer | None) -> Beside:
    if single is None or not use.shapes:
        return Beside(layer=0, channel=4.0 * use.bias + (0 if manner == "float" else 4))
    shape = use.shapes[0]
    # With one input the weights hardly count.
    narrow, wide = shape.at(1, shape.outputs), shape.at(1, 2 * shape.outputs)
    narrow_bytes, wide_bytes = (
        len(single.file(one, manner)[0]) - np.prod(one.weight_shape) * (4 if manner == "float" else 1) for one in (narrow, wide)
    )
    return Beside(layer=0, channel=round((wide_bytes - narrow_bytes) / shape.outputs))


def _more_than_codes(use: Use, manner: Manner, single: SingleLayer | None) -> int:
    """The bytes that a linear layer takes beyond those of codes that become floats."""
    if single is None or use.layer.kind != "linear" or not use.shapes:
        return 0
    return len(single.file(use.shapes[0], manner)[0]) - len(single.file(use.shapes[0], "codes")[0])
