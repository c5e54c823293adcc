"""The report as an interactive page in one file, which asks nothing of any network."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from string import Template
from typing import Any

from autocompress.folder import RunFolder
from autocompress.layer import Layers
from autocompress.report.axes import axes_of, finite
from autocompress.report.contents import Contents
from autocompress.report.decision import best_role, export_folder, export_prefix
from autocompress.report.details import details_of
from autocompress.report.fine_print import latency_noise
from autocompress.report.sections import sections_of
from autocompress.target import Target
from autocompress.trackers.mlflow import ui_hint
from autocompress.trackers.mlflow_run import MlflowRun

_COLUMNS = (
    *("number", "pick", "policy", "remarks", "seeds", "accuracy_mean", "accuracy_deviation"),
    *("test_accuracy", "test_low", "test_high"),
)
_STYLES = ("base", "front", "sections")
_SCRIPTS = (
    "theme",
    "words",
    "trials",
    "chart",
    "decision",
    "filters",
    "zoom",
    "pointing",
    "scatter",
    "table",
    "panel",
    "layers",
    "search",
    "knobs",
    "start",
)
# Where `mlflow ui` listens by itself.
_USUAL_SERVER = "http://127.0.0.1:5000"


def front_page(contents: Contents, layers: Layers, folder: RunFolder) -> str:
    """HTML of a few hundred kB. Names and policies go in as data, so that none can become markup."""
    data = _data(contents, layers, folder) | sections_of(contents, layers)
    return assembled("front.html", title=contents.report.title, styles=_STYLES, scripts=_SCRIPTS, data=data)


def assembled(page: str, *, title: str, styles: Sequence[str], scripts: Sequence[str], data: dict[str, Any]) -> str:
    """A page of this folder in one file, with its styles, scripts and data."""
    return Template(_text(page)).substitute(
        title=html.escape(title),
        style="\n".join(_text(f"{name}.css") for name in styles),
        data=_embedded(data),
        script="\n".join(_text(f"{name}.js") for name in scripts),
    )


def _text(name: str) -> str:
    return resources.files("autocompress.report").joinpath(f"{name}.tmpl").read_text(encoding="utf-8")


def _data(contents: Contents, layers: Layers, folder: RunFolder) -> dict[str, Any]:
    report, evidence = contents.report, contents.evidence
    front, table = report.front, report.table
    axes = axes_of(front)
    columns = {name: table[name].astype(object).where(table[name].notna(), None).tolist() for name in (*_COLUMNS, *axes)}
    chosen, noise = front.recommended(), latency_noise(contents.results)
    menu = (evidence.target or Target()).menu
    return {
        "title": report.title,
        "axes": axes,
        "percent": front.scoring.share,
        "score": {"name": front.scoring.name, "best": best_role(front), "lower": front.scoring.goal == "min"},
        "columns": columns,
        "front": [member.number for member in front.members],
        "nearest": [result.number for result in front.nearest],
        "recommended": None if chosen is None else chosen.number,
        "decision": asdict(contents.decision),
        "baseline": {name: front.baseline.get(name) for name in axes},
        "baseline_test": front.baseline_test.model_dump() if front.baseline_test else None,
        "limits": [
            {"metric": limit.metric, "bound": limit.bound(front.baseline), "text": limit.text} for limit in front.limits
        ],
        "counts": report.counts,
        "trials": report.trials,
        "notes": list(report.notes),
        "noise": None if noise is None else noise.deviation,
        "landmarks": [
            {
                "name": mark.name,
                "points": [
                    {name: finite(model.metrics.get(name)) for name in axes} | {"policy": model.summary}
                    for model in mark.models
                ],
            }
            for mark in contents.landmarks
        ],
        "details": details_of(front, contents.results, layers, menu, evidence.costs),
        "export": export_prefix(folder),
        "into": export_folder(folder),
        "mlflow": None if evidence.mlflow is None else _mlflow(evidence.mlflow),
    }


def _mlflow(run: MlflowRun) -> dict[str, Any]:
    """Where the run of a trial is to be seen; `hint` is the command of the server that shows a database in a file."""
    served = run.tracking_uri.startswith(("http://", "https://"))
    server = run.tracking_uri.rstrip("/") if served else _USUAL_SERVER
    return {
        "base": f"{server}/#/experiments/{run.experiment_id}/runs/",
        "hint": "" if served else ui_hint(run),
        "runs": run.trials,
    }


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
