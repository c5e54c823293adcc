"""What the page shows of a trial when it is opened: its layers before and after, its learning curve, its policy.

Thousands of trials share few settings and layer widths: whatever repeats is written once, and named by its place.
"""

from collections.abc import Sequence
from typing import Any

from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.result import Status, TrialResult
from autocompress.tables import CostTable
from autocompress.target import Menu

# Of larger searches the page holds the details of the front and of the first others, as many as keep it small.
_MOST_ENTRIES = 400_000


class Pool:
    """Distinct values in the order they came."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}
        self.values: list[Any] = []

    def place(self, key: Any, value: Any) -> int:
        """Where the value with this key is; a new one is put at the end."""
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]


def details_of(
    front: ParetoFront, results: Sequence[TrialResult], layers: Layers, menu: Menu, costs: CostTable | None
) -> dict[str, Any]:
    """JSON for the page: `layers` of the uncompressed network, `settings`, `states` of layers, and `trials` by number.

    A setting is the values of a `LayerPolicy` in the order of `fields`. A state is [place in `settings` or -1, inputs,
    outputs, bytes, milliseconds]; the last two by the cost table, None without one. A trial has a state for each layer. Of
    more trials than a page can hold those of the front are kept first.
    """
    known = costs if costs is not None and _covers(costs, layers) else None
    settings, states, shares = Pool(), Pool(), Pool()
    as_is = LayerPolicy()

    def state(name: str, width: tuple[int, int], how: LayerPolicy | None) -> int:
        place = -1 if how is None else settings.place(how, list(how.model_dump(mode="json").values()))
        cost = _cost(known, name, width, how or as_is)
        return states.place((name, width, place), [place, *width, *cost])

    def entry(result: TrialResult) -> dict[str, Any]:
        policy = result.policy
        widths = policy.widths(layers, menu)
        return {
            "states": [state(layer.name, widths.get(layer.name, (0, 0)), policy.layers.get(layer.name)) for layer in layers],
            "shares": {name: shares.place(share, share) for name, share in policy.channel_sparsity.items()},
            "rest": _rest(policy),
            "rungs": [[rung.step, rung.accuracy] for rung in result.rungs],
            "seconds": result.seconds,
            "seed": result.seed,
        }

    whole = Policy().widths(layers, menu)
    before = [states.values[state(layer.name, whole[layer.name], None)] for layer in layers]
    shown = _first_the_front(front, results)[: max(len(front.members), _MOST_ENTRIES // (len(layers.layers) + 20))]
    trials = {result.number: entry(result) for result in shown}
    return {
        "layers": [{"name": layer.name, "kind": layer.kind, "before": was} for layer, was in zip(layers, before, strict=True)],
        "fields": list(LayerPolicy.model_fields),
        "settings": settings.values,
        "states": states.values,
        "shares": shares.values,
        "trials": trials,
        "rest": None if known is None else {"bytes": known.rest_bytes, "ms": known.intercept_ms},
    }


def _first_the_front(front: ParetoFront, results: Sequence[TrialResult]) -> list[TrialResult]:
    first = [*front.members, *front.nearest]
    numbers = {result.number for result in first}
    return first + [one for one in results if one.status is Status.COMPLETE and one.number not in numbers]


def _covers(costs: CostTable, layers: Layers) -> bool:
    """A table that was made for another network says nothing of this one."""
    return {layer.name for layer in layers} <= {layer.name for layer in costs.layers}


def _cost(costs: CostTable | None, name: str, width: tuple[int, int], how: LayerPolicy) -> tuple[float | None, float | None]:
    """Bytes and milliseconds; 0 for a layer that is left out."""
    if costs is None:
        return None, None
    if width == (0, 0):
        return 0, 0
    inputs, outputs = width
    milliseconds = costs.slope * costs.layer_ms(name, inputs, outputs, how)
    return round(costs.layer_bytes(name, inputs, outputs, how)), float(f"{milliseconds:.4g}")


def _rest(policy: Policy) -> dict[str, Any]:
    """The policy without what it does to single groups and layers."""
    return policy.model_dump(mode="json", exclude={"channel_sparsity", "layers"})
