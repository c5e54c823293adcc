"""The front as an interactive page in one file, which asks nothing of any network."""

import html
import json
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from autocompress.front import ParetoFront
from autocompress.report.data import Report, is_share
from autocompress.result import Status

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
_COLUMNS = ("number", "pick", "policy", "test_accuracy", "test_low", "test_high")


def front_page(report: Report) -> str:
    """HTML, about 5 MB, nearly all of it plotly.js. Names and policies go in as data, so that none can become markup."""
    template = resources.files("autocompress.report").joinpath("front.html.tmpl").read_text(encoding="utf-8")
    return Template(template).substitute(title=html.escape(report.title), plotly=get_plotlyjs(), data=_embedded(_data(report)))


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
        "counts": {status.value: report.counts[status] for status in Status},
        "notes": list(report.notes),
    }


def _axes(front: ParetoFront) -> dict[str, dict[str, Any]]:
    """Size, latency and accuracy, and what else the search optimised."""
    wanted = [*_ALWAYS, *(objective.metric for objective in front.objectives if objective.metric not in _ALWAYS)]
    axes = {}
    for metric in wanted:
        name, unit, scale = _AXES.get(metric, (metric, "", 1.0))
        axes[metric] = {"name": name, "unit": unit, "scale": scale, "log": unit != ""}
    return axes


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
