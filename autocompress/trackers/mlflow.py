"""Writes a search to MLflow from a thread of its own: a slow or absent store costs the search nothing.

Loading this module does not load mlflow. What MLflow misses is in the record of the run folder, and `sync` writes it.
"""

import logging
import os
import re
import shlex
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from autocompress.credentials import cleaned, public_uri, secrets_of
from autocompress.errors import InputError, RunFolderError, UnreachableError
from autocompress.folder import RunFolder, write_whole
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.objective import USUAL, Limit, Objective, Scoring
from autocompress.result import Rung, TrialResult
from autocompress.trackers.growth import Growth, preparation_of
from autocompress.trackers.mlflow_run import MlflowRun, absolute_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from autocompress.search import Asked
    from autocompress.trackers.mlflow_store import Store

_log = logging.getLogger(__name__)

# By itself MLflow tries a dead server for four minutes, talks about it, and reports usage to its makers.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_ANSWER_SECONDS = 12.0
_PAUSE_SECONDS = 60.0
_SETTLE_SECONDS = 15.0


class MlflowTracker:
    """A listener that writes every finished trial to MLflow as a nested run, and at the end the front to their parent.

    `uri` None goes on where this run was logged before. `settings` (shown as parameters of the parent run), `baseline`
    (metrics of the uncompressed model) and `datasets` (split -> number of examples, `digests` -> of their arrays) describe the
    parent run. A rival of
    another run says so in `baseline_of`, with the name of that run; none of its models becomes the champion.
    """

    def __init__(
        self,
        folder: RunFolder,
        uri: str | None,
        *,
        experiment_name: str,
        title: str,
        settings: Mapping[str, str],
        layers: Layers,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        scoring: Scoring = USUAL,
        baseline: Mapping[str, float],
        datasets: Mapping[str, int],
        digests: Mapping[str, str] | None = None,
        baseline_of: str | None = None,
    ) -> None:
        before = _read(folder)
        self._folder = folder
        self._uri = absolute_uri(uri or _noted(folder, before).tracking_uri)
        self._layers = layers
        self._run = MlflowRun(
            key=before.key if before else uuid.uuid4().hex,
            tracking_uri=public_uri(self._uri),
            experiment_name=experiment_name,
            title=title,
            settings=dict(settings),
            objectives=tuple(objectives),
            limits=tuple(limits),
            scoring=scoring,
            baseline=dict(baseline),
            datasets=dict(datasets),
            digests=dict(digests or {}),
            baseline_of=baseline_of,
        )
        self._queue: SimpleQueue[TrialResult | threading.Event | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._before: list[TrialResult] = []
        self._front: ParetoFront | None = None
        self._written: set[int] = set()
        self._complaint: str | None = None
        self._missed = 0

    def start(self) -> None:
        """Notes in the run folder where the run is logged, and starts the thread. Returns at once."""
        _set_environment()
        self._before = self._folder.results()
        _write(self._folder, self._run)
        self._thread.start()

    def started(self, asked: "Asked") -> None:
        """Nothing is written: a trial is written whole, when it has finished."""

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing is written: the result brings its rungs along."""

    def finished(self, result: TrialResult) -> None:
        """Leaves the result to the thread."""
        self._queue.put(result)

    def settle(self) -> None:
        """Waits until all trials so far are written, a quarter of a minute at most, and notes which run is whose.

        For a report that links to them: it is written before `close`, and sent along by it.
        """
        if self._thread.is_alive():
            settled = threading.Event()
            self._queue.put(settled)
            settled.wait(_SETTLE_SECONDS)

    def close(self, front: ParetoFront | None) -> int:
        """Writes the front and what had been missed, and ends the parent run. Says how many trials MLflow still misses.

        The report has to be in the run folder before. Returns within a minute when the store is away; `message` then
        says what to do about it.
        """
        self._front = front
        self._queue.put(None)
        self._thread.join()
        return self._missed

    @property
    def message(self) -> str | None:
        """After `close`: one line when something is missing in MLflow, None when all is there."""
        if self._complaint is None:
            return None
        missing = "the front is" if not self._missed else "1 trial is" if self._missed == 1 else f"{self._missed} trials are"
        return (
            f"{missing} missing in MLflow at {self._run.tracking_uri} ({self._complaint}); "
            f"write what is missing by `autocompress sync {shlex.quote(str(self._folder.path))}`"
        )

    @property
    def ui_hint(self) -> str:
        """The command that opens MLflow on this store; for a server, the address of the parent run."""
        return ui_hint(self._run)

    def _work(self) -> None:
        with _into_the_log():
            self._write_all()

    def _write_all(self) -> None:
        growth = Growth(self._run, preparation_of(self._folder))
        for earlier in self._before:
            growth.add(earlier)
        away_until = 0.0
        store: Store | None = None
        while (result := self._queue.get()) is not None:
            if isinstance(result, threading.Event):
                if time.monotonic() >= away_until:
                    store = self._noting(store)
                result.set()
                continue
            point = growth.add(result)
            if time.monotonic() < away_until:
                continue
            try:
                store = store or self._open()
                store.log_trial(result)
                self._written.add(result.number)
                store.log_growth(point)
            except Exception as error:  # noqa: BLE001  # whatever MLflow, a network or a database raises: the record has it all
                _log.warning("MLflow at %s: %s; trying again in a minute", self._run.tracking_uri, one_line(error, self._uri))
                _log.debug("the whole of it", exc_info=True)
                store, away_until = None, time.monotonic() + _PAUSE_SECONDS
        self._finish(store)

    def _noting(self, store: "Store | None") -> "Store | None":
        """Writes the trials that are missing, and notes the runs of all; None when MLflow does not take them."""
        try:
            store = store or self._open()
            store.log_all(self._folder.results(), preparation_of(self._folder))
            self._written |= store.written
            self._run = _with_trials(self._run, store)
            _write(self._folder, self._run)
        except Exception as error:  # noqa: BLE001  # as above; it is tried once more at the end
            _log.warning("MLflow at %s: %s", self._run.tracking_uri, one_line(error, self._uri))
            _log.debug("the whole of it", exc_info=True)
            return None
        return store

    def _open(self) -> "Store":
        store, self._run = _open(self._folder, self._uri, self._run, self._layers)
        self._written |= store.written
        return store

    def _finish(self, store: "Store | None") -> None:
        results: list[TrialResult] = []
        try:
            results = self._folder.results()
            store = store or self._open()
            store.log_all(results, preparation_of(self._folder))
            store.finish(self._folder, self._front)
        except Exception as error:  # noqa: BLE001  # as above
            self._complaint = one_line(error, self._uri)
            _log.warning("MLflow at %s: %s", self._run.tracking_uri, self._complaint)
            _log.debug("the whole of it", exc_info=True)
        written = self._written | (store.written if store else set())
        self._missed = sum(result.number not in written for result in results)


def sync(folder: RunFolder, front: ParetoFront | None, *, layers: Layers, uri: str | None = None) -> int:
    """Writes to MLflow what it has missed of a run that has ended. Says how many trials that were.

    `uri` None is where the run was logged. Raises `RunFolderError` when it never was to be logged, `UnreachableError`
    when the store does not take it.
    """
    run = noted(folder)
    uri = absolute_uri(uri or run.tracking_uri)
    check_reachable(uri)
    results = folder.results()
    try:
        with _into_the_log():
            store, run = _open(folder, uri, run.model_copy(update={"tracking_uri": public_uri(uri)}), layers)
            count = store.log_all(results, preparation_of(folder))
            _write(folder, _with_trials(run, store))
            store.finish(folder, front)
    except Exception as error:
        raise _not_taken(error, uri) from error
    return count


@dataclass(frozen=True)
class Promoted:
    """A model of the registry: its `name` and `version`, and which version had the alias `before` (None: none had)."""

    name: str
    version: int
    before: int | None


def promote(
    folder: RunFolder, result: TrialResult, front: ParetoFront | None, alias: str, *, layers: Layers, uri: str | None = None
) -> Promoted:
    """Registers the model of a complete trial of a run that has ended, unless it is, and moves the alias to it.

    What MLflow has missed of the run is written first. `uri` None is where the run was logged. Raises `InputError` for an
    alias that MLflow does not take or a model that it cannot load, otherwise as `sync` does.
    """
    if problem := _bad_alias(alias):
        raise InputError(f"alias {alias!r}: {problem}")
    run = noted(folder)
    uri = absolute_uri(uri or run.tracking_uri)
    check_reachable(uri)
    known = run.parent_run_id is not None and set(run.trials) >= {one.number for one in folder.results()}
    if not known or uri != absolute_uri(run.tracking_uri):
        sync(folder, front, layers=layers, uri=uri)
    try:
        from autocompress.trackers.mlflow_store import open_store, promote_model

        with _into_the_log():
            store = open_store(uri, run.model_copy(update={"tracking_uri": public_uri(uri)}), layers, ended=True)
            return Promoted(*promote_model(store, folder, result, alias))
    except InputError:
        raise
    except Exception as error:
        raise _not_taken(error, uri) from error


def _bad_alias(alias: str) -> str | None:
    """What is wrong with it, by MLflow's own rules."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias):
        return "give letters, digits, - and _, such as 'staging'"
    if alias.lower() == "latest" or re.fullmatch(r"v\d+", alias.lower()):
        return "it is how MLflow calls versions themselves; give another, such as 'staging'"
    return None


def check_reachable(uri: str) -> None:
    """Raises `UnreachableError`, within 15 seconds, unless `uri` is an MLflow store that answers or can be made."""
    problem = silence(uri)
    if problem is not None:
        raise UnreachableError(
            f"cannot use MLflow at {public_uri(uri)} ({problem}); mend that, or leave out --tracking-uri to log to a file"
        )


def silence(uri: str) -> str | None:
    """Why the MLflow store at `uri` does not answer within 15 seconds; None when it does, or can be made.

    Raises `UnreachableError` for what can be no store, whoever answers: a malformed URI, a file that cannot be written.
    """
    uri = absolute_uri(uri)
    _set_environment()
    file = sqlite_file(uri)
    if file is not None:
        _check_writable(file)
        if not file.exists():
            return None
    from mlflow import MlflowClient  # before the clock runs: loading it takes seconds

    problem: list[str] = []
    # In a thread: name servers and half-open connections know no time-out of ours.
    thread = threading.Thread(target=_ask, args=(MlflowClient, uri, problem), daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if thread.is_alive():
        problem.append(f"no answer in {_ANSWER_SECONDS:.0f} seconds")
    return problem[0] if problem else None


def ui_hint(run: MlflowRun) -> str:
    """The command that opens MLflow on the store of this run; for a server, the address of the parent run."""
    if not run.tracking_uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"
    return run.tracking_uri if run.parent_run_id is None else run_page(run.tracking_uri, run)


def run_page(server: str, run: MlflowRun) -> str:
    """The address of the parent run on a server."""
    return f"{server.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.parent_run_id}"


def charts_page(server: str, run: MlflowRun) -> str:
    """The address of the charts of all trials of the experiment on a server."""
    return f"{server.rstrip('/')}/#/experiments/{run.experiment_id}/runs?compareRunsMode=CHART"


def _not_taken(error: BaseException, uri: str) -> UnreachableError:
    return UnreachableError(f"MLflow at {public_uri(uri)} did not take everything: {one_line(error, uri)}; try again")


def one_line(error: BaseException, *uris: str) -> str:
    """What went wrong: the first line, of the network's or disk's own error if there is one, short and without credentials.

    Those of `uris` are not shown wherever they stand.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            error = link
        link = link.__cause__ or link.__context__
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return cleaned(" ".join(text.split()), *secrets_of(*uris))[:300]


def _open(folder: RunFolder, uri: str, run: MlflowRun, layers: Layers) -> "tuple[Store, MlflowRun]":
    # Loaded here, in the thread: mlflow takes seconds to load.
    from autocompress.trackers.mlflow_store import open_store

    store = open_store(uri, run, layers)
    run = run.model_copy(update={"experiment_id": store.experiment_id, "parent_run_id": store.parent_run_id})
    run = _with_trials(run, store)
    _write(folder, run)
    return store, run


@contextmanager
def _into_the_log() -> Iterator[None]:
    """What MLflow says goes to the log of the run, if there is one: by itself it writes tracebacks on the terminal."""
    with suppress(Exception):  # who opens a store is told
        import mlflow  # noqa: F401  # it sets its loggers up when it is loaded
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.NullHandler()], True
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def _with_trials(run: MlflowRun, store: "Store") -> MlflowRun:
    return run.model_copy(update={"trials": {number: child.run_id for number, child in store.children.items()}})


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _read(folder: RunFolder) -> MlflowRun | None:
    if not folder.mlflow_json.exists():
        return None
    return MlflowRun.from_json(folder.mlflow_json.read_bytes(), source=str(folder.mlflow_json))


def noted(folder: RunFolder) -> MlflowRun:
    """`mlflow.json`. Raises `RunFolderError` when the run never was to be logged."""
    return _noted(folder, _read(folder))


def _noted(folder: RunFolder, run: MlflowRun | None) -> MlflowRun:
    if run is None:
        raise RunFolderError(f"{folder.path} has no mlflow.json, so it is not known where to log to; give --tracking-uri")
    return run


def _write(folder: RunFolder, run: MlflowRun) -> None:
    write_whole(folder.mlflow_json, run.to_json(indent=2))


def _check_writable(file: Path) -> None:
    existed = file.exists()
    try:
        if not file.parent.is_dir():
            raise NotADirectoryError(f"there is no folder {file.parent}")
        with closing(sqlite3.connect(file, timeout=5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except (OSError, sqlite3.Error) as error:
        raise UnreachableError(f"cannot write the MLflow database {file}: {error}; give another --tracking-uri") from error
    finally:
        if not existed:
            file.unlink(missing_ok=True)


def _ask(client: "type[MlflowClient]", uri: str, problem: list[str]) -> None:
    try:
        client(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told in one line
        problem.append(one_line(error, uri))
