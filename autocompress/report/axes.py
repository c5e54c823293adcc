"""What can be put on an axis of the front, and what it is called."""

import math
from typing import Any

from autocompress.front import ParetoFront
from autocompress.objective import SCORE, Scoring, base_of

# Column -> (name, unit, how many of its own units make one of these).
_AXES = {
    "size_bytes": ("Size", "kB", 1e3),
    "latency_ms": ("Latency", "ms", 1.0),
    "download_bytes": ("Download", "kB", 1e3),
    "macs": ("Multiply-accumulates", "M", 1e6),
    "params": ("Parameters", "M", 1e6),
}
_ALWAYS = ("size_bytes", "latency_ms", SCORE)


def axes_of(front: ParetoFront) -> dict[str, dict[str, Any]]:
    """Size, latency and accuracy, and what else the search optimised: metric -> name, unit, scale, as JSON."""
    wanted = [*_ALWAYS, *(objective.metric for objective in front.objectives if objective.metric not in _ALWAYS)]
    axes = {}
    for metric in wanted:
        _, unit, scale = _AXES.get(base_of(metric), (metric, "", 1.0))
        axes[metric] = {"name": name_of(metric, front.scoring), "unit": unit, "scale": scale}
    return axes


def name_of(metric: str, scoring: Scoring) -> str:
    """``Latency, openvino-cpu`` of ``latency_ms/openvino-cpu``; a metric of the task's own by its own name."""
    if metric == SCORE:
        return scoring.name[:1].upper() + scoring.name[1:]
    base, _, place = metric.partition("/")
    if base not in _AXES:
        return metric
    return f"{_AXES[base][0]}, {place}" if place else _AXES[base][0]


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None
