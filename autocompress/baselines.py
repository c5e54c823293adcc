"""Runs the rivals of a run with as much compute as it had, each a run of its own inside the run's folder."""

import os
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from autocompress.artifacts import InStorage
from autocompress.compute import INT8, Standing, standings, used_seconds
from autocompress.credentials import public_uri
from autocompress.drivers import Driver
from autocompress.errors import InputError, RunFolderError, unknown_name
from autocompress.experiment import Experiment
from autocompress.folder import RunFolder, write_whole
from autocompress.listeners import Silent, View
from autocompress.noun import Noun
from autocompress.opened import ArtifactsNote, Run, RunNote, open_run
from autocompress.report import write_report
from autocompress.result import TrialResult
from autocompress.rivals import RIVALS, has_integers, has_levels, rival_experiment
from autocompress.run import conduct, look_for_mlflow
from autocompress.trackers.mlflow import sync

_DONE = "rival.json"
# In this order: with the last file in place the folder counts as a whole baseline.


class Done(Noun):
    """`rival.json` in the folder of a rival: it has come to its end, with so many worker-seconds to spend."""

    version: Literal[1] = 1
    worker_seconds: float


def run_baselines(
    folder: Path,
    *,
    driver: Driver,
    rivals: Sequence[str] | None = None,
    worker_seconds: float | None = None,
    tracking_uri: str | None = None,
    view: View | None = None,
) -> list[Standing]:
    """Lets each rival (see `autocompress.rivals`) spend `worker_seconds`, by default what the run has spent in all.

    Each goes on where it was left; one that had as much before is skipped. None are all that the space of the run allows.
    `tracking_uri` None is where the run was logged. Returns how all rivals so far compare with the run, the best first;
    sooner when it is interrupted. Draws the report of the run anew. Raises `InputError` for what the user can mend.
    """
    view = view or Silent()
    run, uri = open_run(folder), tracking_uri
    for name in rivals or ():
        if name not in RIVALS:
            raise unknown_name("rival", name, RIVALS)
    if run.note.baseline_of is not None:
        raise InputError(f"{folder} is itself a rival, of the run {run.note.baseline_of}")
    if run.is_under_way():
        raise RunFolderError(f"a search is under way in {folder}: its compute is known when it has ended")
    results = run.folder.results()
    if not results:
        raise RunFolderError(f"{folder} has no finished trial: there is no compute to match")
    spend = used_seconds(run.folder) if worker_seconds is None else worker_seconds
    experiment, layers = run.experiment(), run.baseline().layers
    experiments = {
        name: rival_experiment(name, experiment, _known(results, run, name), layers, worker_seconds=spend)
        for name in dict.fromkeys(rivals or _possible(experiment, run, view))
    }
    uri = uri or run.note.tracking_uri
    look_for_mlflow(uri, view)
    driver.check()
    for name, theirs in experiments.items():
        if not _compete(run, name, theirs, spend, driver, uri, view):
            break
    _draw_anew(run, uri, view)
    return standings(run.folder)


def _known(results: Sequence[TrialResult], run: Run, name: str) -> list[TrialResult]:
    """The results that there were when a rival began: its space is made of them, and must stay as it is in its study."""
    began = _began(_folder(run, name))
    return [result for result in results if began is None or result.started < began]


def _began(there: RunFolder) -> float | None:
    """When a rival first began; None when it has not yet."""
    if not there.run_json.exists():
        return None
    return RunNote.from_json(there.run_json.read_bytes(), source=str(there.run_json)).started


def _folder(run: Run, name: str) -> RunFolder:
    return RunFolder(run.folder.baselines / name)


def _possible(experiment: Experiment, run: Run, view: View) -> list[str]:
    names = list(RIVALS)
    if not has_levels(experiment, run.baseline().layers):
        view.say(
            "no warm rivals: the space has no levels for the whole network by which they could begin with uniform policies"
        )
        names = [name for name in names if not name.endswith("-warm")]
    if not has_integers(experiment):
        view.say(f"no {INT8}: target {experiment.target.name} stores no integers")
        names.remove(INT8)
    return names


def _compete(run: Run, name: str, experiment: Experiment, spend: float, driver: Driver, uri: str, view: View) -> bool:
    """Runs one rival to its end; False when it was interrupted."""
    there = _folder(run, name)
    if _spent(there) >= spend:
        view.say(f"{name}: had its {spend:,.1f} worker-seconds before")
        return True
    view.say(f"{name}: {spend:,.1f} worker-seconds")
    _prepare(there, run)
    if (kept := run.folder.storage) is not None:
        there.artifacts = InStorage(kept.url, f"{kept.name}/baselines/{name}")
        there.artifacts.claim()
    ended = conduct(Run(there, _note(run, uri, there), run.experiment_file), experiment, driver, uri, view)
    if not ended.interrupted:
        write_whole(there.path / _DONE, Done(worker_seconds=spend).to_json())
    return not ended.interrupted


def _spent(there: RunFolder) -> float:
    """With how many worker-seconds a rival has come to its end; 0 when it has not."""
    done = there.path / _DONE
    return Done.from_json(done.read_bytes(), source=str(done)).worker_seconds if done.exists() else 0.0


def _prepare(there: RunFolder, run: Run) -> None:
    """A folder with the experiment and the uncompressed model of the run: what it is compared with is the very same."""
    there.baseline.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.folder.experiment, there.experiment)
    # The last one says that the others are there.
    for source in sorted(run.folder.baseline.iterdir(), key=lambda path: path.suffix == ".json"):
        file = there.baseline / source.name
        if not file.exists():
            _link(source, file)


def _link(source: Path, file: Path) -> None:
    try:
        os.link(source, file)
    except OSError:  # not every file system has links
        write_whole(file, source.read_bytes())


def _note(run: Run, uri: str, there: RunFolder) -> RunNote:
    parent = run.note
    # What was asked for beside the file and is no matter of the way to search.
    options = parent.options.model_copy(update=dict.fromkeys(("space", "trials", "minutes", "sampler", "costs")))
    return RunNote(
        experiment=parent.experiment,
        options=options,
        tracking_uri=public_uri(uri),
        started=_began(there) or time.time(),
        versions={name: version(name) for name in parent.versions},
        baseline_of=run.title,
        artifacts=ArtifactsNote.of(there),
    )


def _draw_anew(run: Run, uri: str, view: View) -> None:
    """The run's own report and its MLflow run, now with rivals."""
    front, layers = run.front(), run.baseline().layers
    write_report(run.folder, front, run.folder.results(), layers, title=run.title)
    try:
        sync(run.folder, front, layers=layers, uri=uri)
    except InputError as error:
        view.warn(str(error))
