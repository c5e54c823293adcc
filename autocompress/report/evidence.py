"""What a run folder holds beside its front that a report shows. What is damaged is left out of it: the front does not wait."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from autocompress.compute import curves, preparation_seconds, rivals_in, standings
from autocompress.folder import RunFolder
from autocompress.importance import Importance
from autocompress.noun import Noun
from autocompress.report.worth import Worth, worth_of
from autocompress.result import TrialResult
from autocompress.tables import CostTable, Sensitivity
from autocompress.target import Target
from autocompress.trackers.mlflow_run import MlflowRun

_log = logging.getLogger(__name__)
F = TypeVar("F")
N = TypeVar("N", bound=Noun)


@dataclass(frozen=True)
class Evidence:
    """Each is None, or empty, where the folder holds nothing of the kind.

    `rivals` are the results of each by its name, `preparation` the worker-seconds of sensitivities and costs, `mlflow` where
    the run was logged, `target` what it was measured on, `versions` those of the packages that searched, `started` when, in
    seconds since the epoch.
    """

    worth: Worth | None = None
    importance: Importance | None = None
    sensitivity: Sensitivity | None = None
    costs: CostTable | None = None
    rivals: dict[str, list[TrialResult]] = field(default_factory=dict)
    preparation: float = 0.0
    mlflow: MlflowRun | None = None
    target: Target | None = None
    versions: dict[str, str] = field(default_factory=dict)
    started: float | None = None


def evidence_of(folder: RunFolder) -> Evidence:
    """Reads what there is."""
    note = _json(folder.run_json)
    return Evidence(
        worth=_unless_damaged(folder.path, lambda: worth_of(curves(folder), standings(folder))) if _has_run(folder) else None,
        importance=_read(folder.importance, Importance),
        sensitivity=_read(folder.sensitivity, Sensitivity),
        costs=_read(folder.costs, CostTable),
        rivals=_rivals(folder),
        preparation=_unless_damaged(folder.path, lambda: preparation_seconds(folder)) or 0.0,
        mlflow=_read(folder.mlflow_json, MlflowRun),
        target=_target(folder),
        versions={str(name): str(number) for name, number in note.get("versions", {}).items()},
        started=note.get("started"),
    )


def _has_run(folder: RunFolder) -> bool:
    return folder.front_json.exists() and folder.record.exists()


def _rivals(folder: RunFolder) -> dict[str, list[TrialResult]]:
    found = {rival.path.name: _unless_damaged(rival.record, rival.results) for rival in rivals_in(folder)}
    return {name: results for name, results in found.items() if results}


def _target(folder: RunFolder) -> Target | None:
    stored = _json(folder.baseline / "baseline.json")
    return _unless_damaged(folder.baseline, lambda: Target.model_validate(stored["target"])) if stored else None


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    return _unless_damaged(file, lambda: dict(json.loads(file.read_bytes()))) or {}


def _read(file: Path, noun: type[N]) -> N | None:
    if not file.exists():
        return None
    return _unless_damaged(file, lambda: noun.from_json(file.read_bytes(), source=str(file)))


def _unless_damaged(source: Path, made: Callable[[], F]) -> F | None:
    try:
        return made()
    except Exception:  # noqa: BLE001  # whatever is wrong there, it must not cost the report of a long search
        _log.warning("what %s holds is left out of the report", source, exc_info=True)
        return None
