"""The stored Optuna study of a run: its journal file, or one in a database, opened and checked."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from warnings import catch_warnings, simplefilter

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autocompress.credentials import first_line, public_uri
from autocompress.errors import InputError, RunFolderError, StudyDamagedError, UnreachableError
from autocompress.experiment import Experiment

Direction = Literal["minimize", "maximize"]

STUDY_NAME = "autocompress"


class _Journal(JournalFileBackend):
    """Optuna's journal file, without its lock and without a flush to the disk after every line.

    One process writes, and the lock of one that was killed would hold up the next for 30 seconds. A flush for every
    parameter takes longer than the sampling; what a power cut takes from the study is still in the record.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._path = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._path.open("a") as file:
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs))


def open_journal(file: Path) -> BaseStorage:
    """The journal file as a storage; a missing one is made. Raises `RunFolderError`, `StudyDamagedError`."""
    try:
        file.touch()
        _cut_torn_line(file)
        return JournalStorage(_Journal(file))
    except OSError as error:
        raise RunFolderError(f"cannot open the study {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(file) from error


def open_database(url: str) -> BaseStorage:
    """The studies in a database, as SQLAlchemy names it: ``postgresql://host/name``.

    Raises `InputError` for what is no database, or one whose driver is missing, `UnreachableError` when it does not answer.
    """
    shown = public_uri(url)
    if "://" not in url:
        raise InputError(f"{shown!r} is no database for a study; write it like postgresql://HOST/NAME")
    try:
        # A connection that was lost meanwhile is made anew.
        return get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
    except (ImportError, NoSuchModuleError) as error:
        if url.split("://")[0].split("+")[0] == "postgresql" and isinstance(error, ImportError):
            raise InputError(f"{shown} needs the package psycopg: pip install 'autocompress[postgres]'") from None
        raise InputError(f"{shown} is no database for a study: {_reason(error, url)}") from None
    except ArgumentError as error:
        raise InputError(
            f"{shown} is no database for a study; write it like postgresql://HOST/NAME: {_reason(error, url)}"
        ) from None
    except (SQLAlchemyError, OptunaError, OSError, ValueError) as error:
        raise UnreachableError(f"cannot use the study's database {shown}: {_reason(error, url)}") from None


def absolute(url: str) -> str:
    """The same database for a process that runs in another folder."""
    path = url.removeprefix("sqlite:///")
    return url if path == url or not path else f"sqlite:///{Path(path).resolve()}"


@contextmanager
def database_told(url: str | None, run: Path) -> Iterator[None]:
    """A database that is gone in the middle of a search is no mistake of ours. Raises `UnreachableError`."""
    try:
        yield
    except StorageInternalError as error:
        raise UnreachableError(
            f"the study's database {public_uri(url or '')} failed: {_reason(error, url)}; `autocompress resume {run}` goes on"
        ) from None


def has_study(storage: BaseStorage, name: str) -> bool:
    return any(study.study_name == name for study in storage.get_all_studies())


def _reason(error: BaseException, url: str | None) -> str:
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error, url)


def _cut_torn_line(file: Path) -> None:
    """Removes a last line that was cut short by a crash: Optuna would write on in the middle of it."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _damaged(study: Path | BaseStorage | str) -> StudyDamagedError:
    return StudyDamagedError(
        f"the study {study} is damaged; remove it and resume: the results are in the record, only the sampler forgets them"
    )


def open_study(
    storage: BaseStorage, experiment: Experiment, where: Path | BaseStorage | str, *, name: str = STUDY_NAME
) -> optuna.Study:
    """The study `name` in `storage`, made if it is not there; `where` names it in errors.

    Raises `InputError` when it searches for other objectives, `StudyDamagedError` when it is damaged.
    """
    objectives = experiment.parsed_objectives
    metrics = [objective.metric for objective in objectives]
    directions: list[Direction] = ["minimize" if objective.goal == "min" else "maximize" for objective in objectives]
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            sampler=experiment.sampler if isinstance(experiment.sampler, BaseSampler) else None,
            directions=directions,
            load_if_exists=True,
        )
    except json.JSONDecodeError as error:
        raise _damaged(where) from error
    if study.metric_names is None and not study.get_trials(deepcopy=False):
        with catch_warnings():
            simplefilter("ignore")  # metric names are "experimental" since Optuna 3.2
            study.set_metric_names(metrics)
    # Optuna keeps the directions that the study had, without a word.
    stored = [direction.name.lower() for direction in study.directions]
    if study.metric_names != metrics or stored != directions:
        called = "in this storage" if isinstance(where, BaseStorage) else where
        raise InputError(
            f"the study {called} searches for {_in_words(study.metric_names or [], stored)}, the experiment "
            f"for {_in_words(metrics, directions)}: objectives cannot change; start a new run"
        )
    return study


def _in_words(metrics: Sequence[str], directions: Sequence[str]) -> str:
    names = metrics if len(metrics) == len(directions) else ["?"] * len(directions)
    return ", ".join(f"{direction} {name}" for name, direction in zip(names, directions, strict=True)) or "nothing"
