"""From the costs of single layers to those of whole networks: what the rest takes, and how far off that is."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from autocompress.layer import Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.profile.layers import Use
from autocompress.profile.whole import Point
from autocompress.tables import Beside, CostError, LayerCosts
from autocompress.target import Menu

Floats = NDArray[np.float64]

# With fewer measured policies only an intercept and one slope for all layers are fitted.
_POINTS_FOR_ALL = 6
_ROUNDS = 10
# A residual this many times the median one counts for less, and none below this share of the value.
_FAR, _NEAR = 1.5, 0.005


def fit_sizes(
    layers: Layers, menu: Menu, costs: Sequence[LayerCosts], points: Sequence[Point]
) -> tuple[tuple[LayerCosts, ...], float, CostError]:
    """The costs with the bytes of a layer's nodes filled in, the bytes of the rest, and the error of sizes."""
    rows, known = [], []
    for point in points:
        own = _Sums(point.policy, layers, menu, costs)
        rows.append([1.0, own.layers_of_codes, own.layers_in_integers])
        known.append(own.bytes)
    values = np.array([point.size_bytes for point in points])
    features, offsets = np.array(rows), np.array(known)
    rest, for_codes, for_integers = _robust(features, values - offsets, values)
    filled = tuple(
        layer.model_copy(
            update={
                "codes": Beside(layer=for_codes, channel=layer.codes.channel),
                "integer": Beside(layer=for_integers, channel=layer.integer.channel),
            }
        )
        for layer in costs
    )
    error = _error(lambda kept, out: features[out] @ _robust(features[kept], (values - offsets)[kept], values[kept]) + offsets[out], values)
    return filled, float(rest), error


def fit_times(
    layers: Layers, menu: Menu, costs: Sequence[LayerCosts], found: Sequence[Use], points: Sequence[Point]
) -> tuple[tuple[LayerCosts, ...], float, float, CostError]:
    """The costs with integer times and borders fitted, intercept, slope, and the error of times."""
    numbers = {use.layer.name: use.numbers for use in found}
    rows = [_Sums(point.policy, layers, menu, costs, numbers).times for point in points]
    features, values = np.array(rows), np.array([point.latency_ms for point in points])

    def fitted(kept: NDArray[np.bool_]) -> Floats:
        return _time_coefficients(features[kept], values[kept])

    intercept, slope, of_integers, of_borders = fitted(np.ones(len(values), dtype=bool))
    ratio = of_integers / slope if slope > 0 else 1.0
    filled = tuple(
        layer.model_copy(
            update={
                "int8_ms": tuple(tuple(ms * ratio for ms in row) for row in layer.int8_ms),
                "border_ms": float(of_borders * numbers[layer.name] / _SCALE),
            }
        )
        for layer in costs
    )
    return filled, float(intercept), float(slope), _error(lambda kept, out: features[out] @ fitted(kept), values)
