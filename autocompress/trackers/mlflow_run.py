"""Which MLflow run holds what, and how a tracking URI is read and shown. Does not load mlflow."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from autocompress.credentials import cleaned, public_uri, secrets_of
from autocompress.errors import UnreachableError, unknown_name
from autocompress.noun import Noun
from autocompress.objective import USUAL, Limit, Objective, Scoring

# What MLflow keeps its runs in, when it is not Databricks.
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class MlflowRun(Noun):
    """`mlflow.json` of a run folder: all that is needed to write the run to MLflow, now or later.

    `key` marks the parent run in the store from its first moment, so that it is found again even when the process died
    before it could note the ids. `tracking_uri` is kept without credentials. `datasets` maps a split to its size, `digests` to
    a digest of its arrays, empty for runs of earlier versions.
    `baseline_of` names the run of which this is a rival. `trials` maps the number of a trial to the id of its nested run,
    as far as they were known when a report was last drawn.
    """

    version: Literal[1] = 1
    key: str
    tracking_uri: str
    experiment_name: str
    title: str
    settings: dict[str, str]
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]
    scoring: Scoring = USUAL
    baseline: dict[str, float]
    datasets: dict[str, int]
    digests: dict[str, str] = {}
    baseline_of: str | None = None
    experiment_id: str | None = None
    parent_run_id: str | None = None
    trials: dict[int, str] = {}


def default_uri(folder: Path) -> str:
    """The SQLite store in `folder`."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def absolute_uri(uri: str) -> str:
    """The same store for a process that runs in another folder. Raises `UnreachableError` for what can be no store."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UnreachableError(
            f"tracking URI {public_uri(uri)!r} is malformed: {cleaned(str(error), *secrets_of(uri))}"
        ) from None
    scheme = parts.scheme.lower().split("+")[0]
    if uri == "databricks" or scheme == "databricks":
        return uri
    if not scheme or scheme == "file":
        raise UnreachableError(
            f"tracking URI {uri.rpartition('@')[2]!r}: MLflow no longer keeps runs in plain folders; "
            "use sqlite:///PATH/mlflow.db or http://HOST:PORT"
        )
    if scheme not in _SERVERS + _DATABASES:
        raise UnreachableError(f"tracking URI {public_uri(uri)!r}: {unknown_name('scheme', scheme, _SERVERS + _DATABASES)}")
    if scheme in _SERVERS and not parts.hostname:
        raise UnreachableError(f"tracking URI {public_uri(uri)!r} names no host; write it like http://localhost:5000")
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file}"


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of the database, None when the store is no SQLite file."""
    if not uri.startswith("sqlite:"):
        return None
    path = uri.removeprefix("sqlite:///")
    if path == uri or not path:
        raise UnreachableError(
            f"tracking URI {uri!r} names no file; write it like sqlite:///mlflow.db (or sqlite:////full/path)"
        )
    return Path(path).resolve()
