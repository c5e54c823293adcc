"""What stands below the front, as JSON for the page; None for what there is nothing to say of."""

from dataclasses import asdict
from typing import Any

from autocompress.importance import Importance
from autocompress.layer import Layers
from autocompress.objective import Scoring
from autocompress.report.agreement import agreement_of
from autocompress.report.axes import finite, name_of
from autocompress.report.contents import Contents
from autocompress.report.heat_map import heat_map
from autocompress.report.history import ended_over_time, failures_of, time_split
from autocompress.report.landmarks import plain_words
from autocompress.report.worth import Worth, control, verdict
from autocompress.tables import Sensitivity


def sections_of(contents: Contents, layers: Layers) -> dict[str, Any]:
    front, evidence, results = contents.report.front, contents.evidence, contents.results
    agreement, ended, split = agreement_of(front, layers), ended_over_time(results), time_split(results, evidence.preparation)
    return {
        "worth": _worth(evidence.worth, contents),
        "knobs": _knobs(evidence.importance, front.scoring),
        "sensitive": _sensitive(evidence.sensitivity, layers),
        "agreement": None if agreement is None else asdict(agreement),
        "ended": None if ended is None else asdict(ended),
        "split": None if split is None else asdict(split),
        "failures": [asdict(failure) for failure in failures_of(results)],
        "fine_print": [asdict(item) for item in contents.fine_print],
    }


def _worth(worth: Worth | None, contents: Contents) -> dict[str, Any] | None:
    if worth is None:
        return None
    front, best, bracket = contents.report.front, worth.best, None
    if best is not None and best.share is not None and best.share < 1:
        bracket = {"volume": best.hypervolume, "from": best.reached, "to": best.worker_seconds, "share": best.share}
    return {
        "verdict": verdict(worth),
        "control": " ".join(filter(None, (plain_words(contents.landmarks, front), control(worth, front)))),
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


def _knobs(importance: Importance | None, scoring: Scoring) -> dict[str, Any] | None:
    if importance is None or not (importance.shares or importance.missing):
        return None
    return {
        "trials": importance.trials,
        "objectives": [
            {"name": name_of(metric, scoring), "shares": {name: finite(share) for name, share in shares.items()}}
            for metric, shares in importance.shares.items()
        ],
        "missing": [f"{name_of(metric, scoring)}: {reason}." for metric, reason in importance.missing.items()],
    }


def _sensitive(sensitivity: Sensitivity | None, layers: Layers) -> dict[str, Any] | None:
    if sensitivity is None or not sensitivity.entries:
        return None
    drawn = heat_map(sensitivity, layers)
    return {
        "unit": sensitivity.divergence,
        "examples": sensitivity.examples,
        "span": drawn.span,
        "rows": drawn.rows,
        "columns": [{"head": column.head, "value": column.value} for column in drawn.columns],
        "cells": [[None if cell is None else [finite(cell.divergence), cell.words] for cell in row] for row in drawn.cells],
    }
