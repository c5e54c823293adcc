"""What a run folder holds beside its front that a report shows. What is damaged is left out of it: the front does not wait."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autocompress.compute import curves, standings
from autocompress.folder import RunFolder
from autocompress.importance import Importance
from autocompress.noun import Noun
from autocompress.report.worth import Worth, worth_of
from autocompress.tables import Sensitivity

_log = logging.getLogger(__name__)
F = TypeVar("F")
N = TypeVar("N", bound=Noun)


@dataclass(frozen=True)
class Evidence:
    """Each is None where the folder holds nothing of the kind."""

    worth: Worth | None = None
    importance: Importance | None = None
    sensitivity: Sensitivity | None = None


def evidence_of(folder: RunFolder) -> Evidence:
    """Reads what there is."""
    return Evidence(
        worth=_unless_damaged(folder.path, lambda: worth_of(curves(folder), standings(folder))) if _has_run(folder) else None,
        importance=_read(folder.importance, Importance),
        sensitivity=_read(folder.sensitivity, Sensitivity),
    )


def _has_run(folder: RunFolder) -> bool:
    return folder.front_json.exists() and folder.record.exists()


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
