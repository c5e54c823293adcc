"""From the costs of single layers to those of whole networks: what the rest takes, and how far off that is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from autocompress.layer import Layers
from autocompress.policy import LayerPolicy
from autocompress.profile.layers import Use
from autocompress.profile.whole import Point
from autocompress.tables import Beside, CostError, LayerCosts
from autocompress.target import Menu

Floats = NDArray[np.float64]
Coefficients = Callable[[Floats, Floats], Floats]

# With fewer measured policies one slope is fitted for all layers, and no border.
_POINTS_FOR_ALL = 7
_ROUNDS = 10
# A residual of more than so many times the median one counts for less; one below this share of the value never does.
_FAR, _NEAR = 1.5, 0.005


@dataclass(frozen=True)
class Fitted:
    """The layers with what was fitted filled in, what is left for the whole network, and how far off predictions are."""

    layers: tuple[LayerCosts, ...]
    rest_bytes: float
    intercept_ms: float
    slope: float
    size_error: CostError
    latency_error: CostError


def fit(costs: Sequence[LayerCosts], found: Sequence[Use], points: Sequence[Point], layers: Layers, menu: Menu) -> Fitted:
    """Fits the costs of single layers to whole measured policies, of which the first is the uncompressed model.

    By least squares of relative errors without negative terms, outliers weighed down (Holland and Welsch, 1977); errors
    are those of each policy predicted from all others.
    """
    numbers = {use.layer.name: use.numbers for use in found}
    sums = [_sums(point, costs, numbers, layers, menu) for point in points]
    known = np.array([one.bytes for one in sums])
    sizes = np.array([point.size_bytes for point in points])
    nodes = np.array([[1.0, one.codes, one.integers] for one in sums])
    rest_bytes, of_codes, of_integers = _size_coefficients(nodes, sizes, known)
    terms = np.array([[1.0, one.float_ms, one.int8_ms, one.border] for one in sums])
    times = np.array([point.latency_ms for point in points])
    intercept, slope, integer_slope, border = _time_coefficients(terms, times)
    filled = tuple(
        LayerCosts(
            **dict(layer)
            | {
                "codes": Beside(layer=of_codes, channel=layer.codes.channel),
                "integer": Beside(layer=of_integers, channel=layer.integer.channel),
                "int8_ms": tuple(tuple(ms * (integer_slope / slope) for ms in row) for row in layer.int8_ms),
                "border_ms": border * numbers[layer.name],
            }
        )
        for layer in costs
    )
    return Fitted(
        layers=filled,
        rest_bytes=float(rest_bytes),
        intercept_ms=float(intercept),
        slope=float(slope),
        size_error=_error(
            [
                known[out] + nodes[out] @ _size_coefficients(*_without(out, nodes, sizes, known))
                for out in range(1, len(points))
            ],
            sizes[1:],
        ),
        latency_error=_error(
            [terms[out] @ _time_coefficients(*_without(out, terms, times)) for out in range(1, len(points))], times[1:]
        ),
    )


@dataclass(frozen=True)
class _Sums:
    """What the layers of a policy sum up to.

    Bytes without nodes, layers of codes, layers in integers, milliseconds of float and of integer layers, and numbers
    that change their form between two layers.
    """

    bytes: float
    codes: int
    integers: int
    float_ms: float
    int8_ms: float
    border: float


def _sums(point: Point, costs: Sequence[LayerCosts], numbers: dict[str, int], layers: Layers, menu: Menu) -> _Sums:
    widths = point.policy.widths(layers, menu)
    costs = [cost for cost in costs if cost.name in widths]
    hows = [point.policy.layers.get(cost.name, LayerPolicy()) for cost in costs]
    integer = [cost.is_integer(how) for cost, how in zip(costs, hows, strict=True)]
    ms = [cost.ms(*widths[cost.name], how) for cost, how in zip(costs, hows, strict=True)]
    passed = [numbers[cost.name] * widths[cost.name][1] / cost.outputs[-1] for cost in costs]
    return _Sums(
        bytes=point.policy.extra_bytes(layers, menu)
        + sum(cost.bytes(*widths[cost.name], how) for cost, how in zip(costs, hows, strict=True)),
        codes=sum(how.weight_bits is not None and how.activation_bits is None for how in hows),
        integers=sum(how.activation_bits is not None for how in hows),
        float_ms=sum(one for one, whole in zip(ms, integer, strict=True) if not whole),
        int8_ms=sum(one for one, whole in zip(ms, integer, strict=True) if whole),
        border=sum(count for count, (before, after) in zip(passed, pairwise(integer), strict=False) if before != after),
    )


def _size_coefficients(nodes: Floats, sizes: Floats, known: Floats) -> Floats:
    """The bytes of the rest, of the nodes of a layer of codes, and of those of a layer in integers."""
    return _robust(nodes, sizes - known, sizes)


def _time_coefficients(terms: Floats, times: Floats) -> Floats:
    """Intercept, slope of float layers, slope of integer layers, and milliseconds for each number that changes its form."""
    if len(times) >= _POINTS_FOR_ALL and terms[:, 2].any():
        own = _robust(terms, times, times)
        if own[1] > 0 and own[2] > 0:
            return own
    layers = terms[:, 1] + terms[:, 2]
    intercept, slope = _robust(np.stack([terms[:, 0], layers], axis=1), times, times)
    if slope == 0 and layers.all():  # noise: the widest network is not the slowest one
        intercept, slope = 0.0, float(np.median(times / layers))
    elif slope == 0:  # too fast to be told from nothing
        slope = 1.0
    return np.array([intercept, slope, slope, 0.0])


def _robust(features: Floats, values: Floats, scale: Floats) -> Floats:
    """Coefficients >= 0 of least squares of residuals over `scale`."""
    largest = np.abs(features).max(axis=0)
    unit = features / np.where(largest > 0, largest, 1.0)
    weights = 1 / scale
    for _ in range(_ROUNDS):
        found, _ = nnls(unit * weights[:, None], values * weights)
        residuals = np.abs(unit @ found - values) / scale
        far = _FAR * max(float(np.median(residuals)), _NEAR)
        weights = np.sqrt(1 / np.maximum(1.0, residuals / far)) / scale
    coefficients: Floats = np.where(largest > 0, found / np.where(largest > 0, largest, 1.0), 0.0)
    return coefficients


def _without(out: int, *arrays: Floats) -> list[Floats]:
    return [np.delete(array, out, axis=0) for array in arrays]


def _error(predicted: Sequence[float], measured: Floats) -> CostError:
    shares = np.abs(np.array(predicted) / measured - 1)
    ranks = spearmanr(predicted, measured).statistic if len(measured) > 2 and np.ptp(predicted) and np.ptp(measured) else 0.0
    return CostError(
        policies=len(measured), mean=float(shares.mean()), largest=float(shares.max()), rank_correlation=float(ranks)
    )
