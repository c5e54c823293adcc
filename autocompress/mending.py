"""What a crash or a stray hand did to the files of a run: the good part is used, the rest is set aside and told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autocompress.errors import InputError, RunFolderError, StudyDamagedError
from autocompress.folder import RunFolder, write_whole
from autocompress.opened import read_front
from autocompress.result import TrialResult
from autocompress.tables import CostTable, Sensitivity
from autocompress.trackers.mlflow_run import MlflowRun

T = TypeVar("T")
Warn = Callable[[str], None]


def mend(folder: RunFolder, warn: Warn) -> None:
    """Makes all files of the run readable but for its study, its baseline and ``run.json``; says through `warn` what was lost.

    What cannot be read is kept in a file beside it, called ``.damaged``. Raises `RunFolderError` when it cannot be written.
    """
    try:
        _mend_record(folder, warn)
        lost: dict[Path, tuple[Callable[[], object], str]] = {
            folder.front_json: (lambda: read_front(folder), "the test split is measured again"),
            folder.sensitivity: (_reads(Sensitivity, folder.sensitivity), "sensitivities are measured again"),
            folder.costs: (_reads(CostTable, folder.costs), "costs are measured again"),
            folder.mlflow_json: (_reads(MlflowRun, folder.mlflow_json), "MLflow gets the run once more, as a new one"),
        }
        for file, (read, instead) in lost.items():
            if not file.exists():
                continue
            try:
                read()
            except InputError:
                warn(f"{file} is damaged and kept as {_set_aside(file).name}; {instead}")
    except OSError as error:
        raise RunFolderError(f"cannot mend the run folder {folder.path}: {error.strerror}") from error


def with_study_mended(make: Callable[[], T], study: Path, warn: Warn) -> T:
    """What `make` makes of the journal `study`; where that is damaged, of the part before, and then without it.

    Raises what `make` raises for other reasons.
    """
    try:
        return make()
    except StudyDamagedError:
        good = _good_part(study.read_bytes())
        aside = _set_aside(study)
        write_whole(study, good)
    try:
        made = make()
        warn(f"{study} was damaged after {len(good):,} bytes and is kept as {aside.name}; {_FORGOTTEN} of what came after")
    except StudyDamagedError:
        study.unlink()
        made = make()
        warn(f"{study} was damaged and is kept as {aside.name}; {_FORGOTTEN} of what came before")
    return made


_FORGOTTEN = "all results are in the record, but the sampler knows nothing"


def _mend_record(folder: RunFolder, warn: Warn) -> None:
    if not folder.record.exists():
        return
    *whole, _ = folder.record.read_bytes().split(b"\n")
    bad: dict[int, str] = {}
    for number, line in enumerate(whole, 1):
        try:
            if line.strip():
                TrialResult.from_json(line, source=f"line {number} of {folder.record}")
        except InputError as error:
            bad[number] = str(error)
    if not bad:
        return
    aside = _beside(folder.record)
    with aside.open("ab") as file:
        file.write(b"".join(whole[number - 1] + b"\n" for number in bad))
    write_whole(folder.record, b"".join(line + b"\n" for number, line in enumerate(whole, 1) if number not in bad))
    for problem in bad.values():
        warn(f"{problem}; its trial is lost, the line is kept in {aside.name}")


def _reads(noun: type[Sensitivity] | type[CostTable] | type[MlflowRun], file: Path) -> Callable[[], object]:
    return lambda: noun.from_json(file.read_bytes())


def _good_part(journal: bytes) -> bytes:
    """The lines before the first that is no entry of a journal."""
    good = 0
    for line in journal.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not (isinstance(entry, dict) and "op_code" in entry and "worker_id" in entry):
            break
        good += len(line)
    return journal[:good]


def _set_aside(file: Path) -> Path:
    return file.replace(_beside(file))


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.damaged")
