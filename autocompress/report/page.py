"""The report as an interactive page in one file, which asks nothing of any network."""

import html
import json
import math
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.objective import base_of
from autocompress.report.data import Report, is_share
from autocompress.report.evidence import Evidence
from autocompress.report.heat_map import heat_map
from autocompress.report.worth import Worth, control, verdict

# What the page can put on an axis: column -> (name, unit, how many of its own units make one of these).
_AXES = {
    "size_bytes": ("Size", "kB", 1e3),
    "latency_ms": ("Latency", "ms", 1.0),
    "accuracy": ("Accuracy", "", 1.0),
    "download_bytes": ("Download", "kB", 1e3),
    "macs": ("Multiply-accumulates", "M", 1e6),
    "params": ("Parameters", "M", 1e6),
}
_ALWAYS = ("size_bytes", "latency_ms", "accuracy")
_COLUMNS = (
    *("number", "pick", "policy", "remarks", "seeds", "accuracy_mean", "accuracy_deviation"),
    *("test_accuracy", "test_low", "test_high"),
)
_SCRIPTS = ("words.js.tmpl", "front.js.tmpl", "sections.js.tmpl")


def front_page(report: Report, evidence: Evidence, layers: Layers) -> str:
    """HTML, about 5 MB, nearly all of it plotly.js. Names and policies go in as data, so that none can become markup."""
    return Template(_text("front.html.tmpl")).substitute(
        title=html.escape(report.title),
        style=_text("front.css.tmpl"),
        plotly=get_plotlyjs(),
        data=_embedded(_data(report) | _sections(report.front, evidence, layers)),
        script="\n".join(_text(name) for name in _SCRIPTS),
    )


def _text(name: str) -> str:
    return resources.files("autocompress.report").joinpath(name).read_text(encoding="utf-8")


def _data(report: Report) -> dict[str, Any]:
    front = report.front
    axes = _axes(front)
    table = report.table
    columns = {name: table[name].astype(object).where(table[name].notna(), None).tolist() for name in (*_COLUMNS, *axes)}
    chosen = front.recommended()
    return {
        "title": report.title,
        "axes": axes,
        "percent": is_share(front.baseline),
        "columns": columns,
        "front": [member.number for member in front.members],
        "nearest": [result.number for result in front.nearest],
        "recommended": None if chosen is None else chosen.number,
        "baseline": {name: front.baseline.get(name) for name in axes},
        "baseline_test": front.baseline_test.model_dump() if front.baseline_test else None,
        "limits": [
            {"metric": limit.metric, "bound": limit.bound(front.baseline), "text": limit.text} for limit in front.limits
        ],
        "counts": report.counts,
        "notes": list(report.notes),
    }


def _axes(front: ParetoFront) -> dict[str, dict[str, Any]]:
    """Size, latency and accuracy, and what else the search optimised."""
    wanted = [*_ALWAYS, *(objective.metric for objective in front.objectives if objective.metric not in _ALWAYS)]
    axes = {}
    for metric in wanted:
        _, unit, scale = _AXES.get(base_of(metric), (metric, "", 1.0))
        axes[metric] = {"name": _name(metric), "unit": unit, "scale": scale, "log": unit != ""}
    return axes


def _sections(front: ParetoFront, evidence: Evidence, layers: Layers) -> dict[str, Any]:
    """What stands below the front; None for what there is nothing to say of."""
    importance, sensitivity = evidence.importance, evidence.sensitivity
    knobs = sensitive = None
    if importance is not None and (importance.shares or importance.missing):
        knobs = {
            "trials": importance.trials,
            "objectives": [
                {"name": _name(metric), "shares": {name: _finite(share) for name, share in shares.items()}}
                for metric, shares in importance.shares.items()
            ],
            "missing": [f"{_name(metric)}: {reason}." for metric, reason in importance.missing.items()],
        }
    if sensitivity is not None and sensitivity.entries:
        drawn = heat_map(sensitivity, layers)
        sensitive = {
            "unit": sensitivity.divergence,
            "examples": sensitivity.examples,
            "span": drawn.span,
            "rows": drawn.rows,
            "columns": [{"head": column.head, "value": column.value} for column in drawn.columns],
            "cells": [
                [None if cell is None else [_finite(cell.divergence), cell.words] for cell in row] for row in drawn.cells
            ],
        }
    return {"worth": _worth(evidence.worth, front), "knobs": knobs, "sensitive": sensitive}


def _worth(worth: Worth | None, front: ParetoFront) -> dict[str, Any] | None:
    if worth is None:
        return None
    best, bracket = worth.best, None
    if best is not None and best.share is not None and best.share < 1:
        bracket = {"volume": best.hypervolume, "from": best.reached, "to": best.worker_seconds, "share": best.share}
    return {
        "verdict": verdict(worth),
        "control": control(worth, front.baseline),
        "compared": bool(worth.standings),
        "bracket": bracket,
        "curves": [
            {
                "name": curve.name,
                "ours": curve.ours,
                "seconds": curve.seconds,
                "volumes": curve.volumes,
                "trials": curve.numbers,
            }
            for curve in worth.curves
        ],
    }


def _name(metric: str) -> str:
    base, _, place = metric.partition("/")
    if base not in _AXES:
        return metric
    return f"{_AXES[base][0]}, {place}" if place else _AXES[base][0]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
