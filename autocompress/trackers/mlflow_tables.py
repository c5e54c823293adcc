"""What the parent run keeps beside its trials: the front in all its forms, sensitivities, costs and importances."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.utils import mlflow_tags

from autocompress.errors import InputError
from autocompress.folder import RunFolder
from autocompress.tables import Sensitivity

SENSITIVITY_TABLE = "sensitivity_table.json"

_log = logging.getLogger(__name__)


def evidence_files(folder: RunFolder) -> Iterator[Path]:
    """The files of a run folder that say what was found, those that there are."""
    front = folder.front_json
    pictures = (*(front.with_suffix(end) for end in (".csv", ".html", ".md", ".png")), folder.path / "search.png")
    yield from (file for file in (front, *pictures, folder.sensitivity, folder.costs, folder.importance) if file.exists())


def log_sensitivity(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Writes the sensitivities as a table that MLflow shows as one; nothing when there are none, or they are damaged."""
    if not folder.sensitivity.exists():
        return
    try:
        table = Sensitivity.from_json(folder.sensitivity.read_bytes(), source=str(folder.sensitivity))
    except (InputError, OSError) as error:
        _log.warning("the table of sensitivities is left out: %s", error)
        return
    rows = [[entry.option.name, entry.option.what, entry.option.value, entry.value] for entry in table.entries]
    columns = ["layer", "what", "value", table.divergence]
    # As `log_table` does, which would add the same rows again when they are written again.
    client.log_text(run_id, json.dumps({"columns": columns, "data": rows}), SENSITIVITY_TABLE)
    client.set_tag(run_id, mlflow_tags.MLFLOW_LOGGED_ARTIFACTS, json.dumps([{"path": SENSITIVITY_TABLE, "type": "table"}]))
