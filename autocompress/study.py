"""The stored Optuna study of a run: its journal file, opened, mended and checked."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from warnings import catch_warnings, simplefilter

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocompress.errors import InputError, RunFolderError, StudyDamagedError
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


def _cut_torn_line(file: Path) -> None:
    """Removes a last line that was cut short by a crash: Optuna would write on in the middle of it."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _damaged(study: Path | BaseStorage) -> StudyDamagedError:
    return StudyDamagedError(
        f"the study {study} is damaged; remove it and resume: the results are in the record, only the sampler forgets them"
    )


def open_study(storage: BaseStorage, experiment: Experiment, where: Path | BaseStorage) -> optuna.Study:
    """The study in `storage`, made if it is not there; `where` names it in errors.

    Raises `InputError` when it searches for other objectives, `StudyDamagedError` when it is damaged.
    """
    objectives = experiment.parsed_objectives
    metrics = [objective.metric for objective in objectives]
    directions: list[Direction] = ["minimize" if objective.goal == "min" else "maximize" for objective in objectives]
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
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
        name = where if isinstance(where, Path) else "in this storage"
        raise InputError(
            f"the study {name} searches for {_in_words(study.metric_names or ['?'] * len(stored), stored)}, the experiment "
            f"for {_in_words(metrics, directions)}: objectives cannot change; start a new run"
        )
    return study


def _in_words(metrics: Sequence[str], directions: Sequence[str]) -> str:
    return ", ".join(f"{direction} {metric}" for metric, direction in zip(metrics, directions, strict=True))
