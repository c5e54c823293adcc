"""The conductor: brings an experiment, a search, a driver, the trackers and the report together over one run folder."""

import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import optuna

from autocompress.baseline import Baseline, load_baseline, load_data, make_baseline
from autocompress.drivers import Driver, Job, Listener
from autocompress.errors import InputError, RunFolderError, TaskError, TrialError, unknown_name
from autocompress.experiment import Budget, Experiment, load_experiment
from autocompress.folder import RunFolder, write_whole
from autocompress.front import ParetoFront, TestScore
from autocompress.measure import test_score
from autocompress.noun import Noun
from autocompress.report import write_report
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import SAMPLERS, Asked, Search
from autocompress.space import load_space
from autocompress.trackers.jsonl import JsonlRecord
from autocompress.trackers.mlflow import MlflowTracker, check_reachable
from autocompress.trackers.mlflow_run import public_uri

_log = logging.getLogger(__name__)
_PACKAGES = ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "ray", "mlflow")


class Options(Noun):
    """What was asked for beside the experiment file; what is None or empty is as the experiment says.

    `trials` and `minutes` replace the whole budget: with `minutes` alone the number of trials is not bounded.
    """

    space: str | None = None
    trials: int | None = None
    minutes: float | None = None
    sampler: str | None = None
    seed: int | None = None
    limits: tuple[str, ...] = ()

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment with these options. Raises `InputError` for what cannot be used."""
        if self.space is not None:
            experiment = replace(experiment, space=load_space(self.space))
        if self.trials is not None or self.minutes is not None:
            experiment = replace(experiment, budget=Budget(trials=self.trials, minutes=self.minutes))
        if self.sampler is not None:
            if self.sampler not in SAMPLERS:
                raise unknown_name("sampler", self.sampler, SAMPLERS)
            experiment = replace(experiment, sampler=self.sampler)
        if self.seed is not None:
            experiment = replace(experiment, seed=self.seed)
        if self.limits:
            experiment = replace(experiment, limits=self.limits)
        _ = experiment.parsed_limits
        return experiment


class RunNote(Noun):
    """`run.json`: where a run came from. `experiment` is the path of its file, `started` seconds since the epoch."""

    version: Literal[1] = 1
    experiment: str
    options: Options
    tracking_uri: str
    started: float
    versions: dict[str, str]


class View(Listener, Protocol):
    """Who watches a run: hears of every trial, and of what else goes on."""

    def say(self, text: str) -> None:
        """One line of news."""

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""

    def begin(self, experiment: Experiment, baseline: dict[str, float], recorded: Sequence[TrialResult]) -> None:
        """The first trial is about to start; `recorded` are those of earlier sessions."""


class Silent:
    """A view that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def begin(self, experiment: Experiment, baseline: dict[str, float], recorded: Sequence[TrialResult]) -> None:
        """Nothing."""

    def started(self, asked: Asked) -> None:
        """Nothing."""

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing."""

    def finished(self, result: TrialResult) -> None:
        """Nothing."""


class Listeners:
    """Tells many listeners. Only the first, the record, may stop the search: what the others raise goes to the log."""

    def __init__(self, record: Listener, *others: Listener) -> None:
        self._record = record
        self._others = others

    def started(self, asked: Asked) -> None:
        _log.info("trial %d started", asked.number)
        self._record.started(asked)
        self._tell(lambda listener: listener.started(asked))

    def rung(self, number: int, rung: Rung) -> None:
        self._record.rung(number, rung)
        self._tell(lambda listener: listener.rung(number, rung))

    def finished(self, result: TrialResult) -> None:
        _log.info("trial %d: %s %s", result.number, result.status, result.error or result.summary)
        self._record.finished(result)
        self._tell(lambda listener: listener.finished(result))

    def _tell(self, news: Callable[[Listener], None]) -> None:
        for listener in self._others:
            try:
                news(listener)
            except Exception:  # noqa: BLE001  # whatever a listener does wrong, the trials are not to blame
                _log.exception("%s failed; the search goes on", type(listener).__name__)


class FrontFile:
    """A listener that keeps `front.json` up to date while the search runs; test scores of an earlier session stay."""

    def __init__(self, folder: RunFolder, experiment: Experiment, baseline: dict[str, float]) -> None:
        self._folder = folder
        self._experiment = experiment
        self._baseline = baseline
        self._results = folder.results()
        self._before = read_front(folder) if folder.front_json.exists() else None

    def started(self, asked: Asked) -> None:
        """Nothing changes."""

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing changes."""

    def finished(self, result: TrialResult) -> None:
        self._results.append(result)
        self.write()

    def write(self) -> ParetoFront:
        """Stores and returns the front of all results so far."""
        experiment, before = self._experiment, self._before
        front = ParetoFront.of(self._results, experiment.parsed_objectives, experiment.parsed_limits, self._baseline)
        if before is not None:
            known = {member.number: before.test[member.number] for member in front.members if member.number in before.test}
            front = front.model_copy(update={"test": known, "baseline_test": before.baseline_test})
        write_whole(self._folder.front_json, front.to_json(indent=1))
        return front


@dataclass(frozen=True)
class Run:
    """A run folder opened again: what it was asked for, and the experiment file to load (the original, or the copy)."""

    folder: RunFolder
    note: RunNote
    experiment_file: Path

    def experiment(self) -> Experiment:
        """The experiment with the options of the run. Raises `ExperimentError`."""
        original = Path(self.note.experiment).parent
        if self.experiment_file == self.folder.experiment and str(original) not in sys.path:
            # The copy still finds the neighbours of the original; so it does in the processes that Ray starts.
            sys.path.append(str(original))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(original))))
        return self.note.options.apply(load_experiment(self.experiment_file))

    def baseline(self) -> Baseline:
        """Raises `RunFolderError`."""
        return load_baseline(self.folder.baseline)

    def front(self) -> ParetoFront:
        """Raises `RunFolderError` when no trial has finished yet."""
        if not self.folder.front_json.exists():
            raise RunFolderError(f"{self.folder.path} has no front yet: no trial has finished")
        return read_front(self.folder)

    def is_under_way(self) -> bool:
        """True while a process searches in this folder."""
        if not self.folder.log.exists():
            return False
        with self.folder.log.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def run_search(
    experiment_file: Path,
    folder: Path,
    *,
    driver: Driver,
    tracking_uri: str,
    options: Options | None = None,
    view: View | None = None,
) -> ParetoFront:
    """Searches from the beginning, in a new run folder, and returns the front, scored on the test split.

    Raises `InputError` for whatever the user can mend; then a run that had no trial leaves no run behind. Raises
    `KeyboardInterrupt` when it was interrupted before any trial was complete.
    """
    options = options or Options()
    if options.space is not None and options.space.endswith(".py"):
        options = options.model_copy(update={"space": str(Path(options.space).resolve())})
    experiment = options.apply(load_experiment(experiment_file))
    check_reachable(tracking_uri)
    driver.check()
    where = RunFolder(folder)
    where.create()
    note = RunNote(
        experiment=str(Path(experiment_file).resolve()),
        options=options,
        tracking_uri=public_uri(tracking_uri),
        started=time.time(),
        versions={name: version(name) for name in _PACKAGES},
    )
    shutil.copyfile(experiment_file, where.experiment)
    try:
        return _conduct(Run(where, note, Path(note.experiment)), experiment, driver, tracking_uri, view or Silent())
    except RunFolderError:
        raise
    except InputError:
        if not where.record.exists():
            _clear(where)
        raise


def resume(
    folder: Path,
    *,
    driver: Driver,
    trials: int | None = None,
    minutes: float | None = None,
    tracking_uri: str | None = None,
    view: View | None = None,
) -> ParetoFront:
    """Goes on with a run that was interrupted or killed, or whose budget (`trials` in all, or `minutes` from now) is raised.

    `tracking_uri` None is where the run was logged before. Raises as `run_search` does.
    """
    view = view or Silent()
    run = open_run(folder)
    options, uri = run.note.options, tracking_uri or run.note.tracking_uri
    if trials is not None or minutes is not None:
        options = options.model_copy(update={"trials": trials, "minutes": minutes})
    # Kept: what is resumed once more goes on with the same budget.
    run = replace(run, note=run.note.model_copy(update={"options": options, "tracking_uri": public_uri(uri)}))
    if run.experiment_file == run.folder.experiment:
        view.warn(f"{run.note.experiment} is gone; going on with the copy in the run folder")
    elif run.experiment_file.read_bytes() != run.folder.experiment.read_bytes():
        view.warn(f"{run.note.experiment} has changed since the run began (its earlier version is {run.folder.experiment})")
    experiment = run.experiment()
    check_reachable(uri)
    driver.check()
    return _conduct(run, experiment, driver, uri, view)


def open_run(folder: str | Path) -> Run:
    """Raises `RunFolderError` when the folder holds no run, or when it is damaged."""
    where = RunFolder(folder)
    where.check()
    try:
        note = RunNote.from_json(where.run_json.read_bytes(), source=where.run_json.name)
    except (OSError, InputError) as error:
        raise RunFolderError(f"{where.path} is damaged: {error}") from error
    original = Path(note.experiment)
    if not original.is_file() and not where.experiment.is_file():
        raise RunFolderError(
            f"the experiment of this run is gone: neither {original} nor {where.experiment} exists; put one back"
        )
    return Run(where, note, original if original.is_file() else where.experiment)


def read_front(folder: RunFolder) -> ParetoFront:
    """`front.json`. Raises `RunFolderError` when it is damaged."""
    try:
        return ParetoFront.from_json(folder.front_json.read_bytes(), source=folder.front_json.name)
    except (OSError, InputError) as error:
        raise RunFolderError(
            f"{folder.path} is damaged: {error}; remove {folder.front_json.name}, then `autocompress resume {folder.path}`"
        ) from error


def _conduct(run: Run, experiment: Experiment, driver: Driver, tracking_uri: str, view: View) -> ParetoFront:
    folder = run.folder
    with _only_here(folder), _logging_to(folder.log):
        write_whole(folder.run_json, run.note.to_json(indent=1))
        recorded = folder.results()
        if not (folder.baseline / "baseline.json").exists():
            view.say("preparing the uncompressed model: train if the task trains, export, measure")
        baseline = _baseline(experiment, folder)
        data = load_data(experiment.task)
        search = Search(experiment, baseline.layers, baseline.metrics, study=folder.study, recorded=recorded)
        live = FrontFile(folder, experiment, baseline.metrics)
        tracker = MlflowTracker(
            folder,
            tracking_uri,
            experiment_name=Path(run.note.experiment).stem,
            title=folder.path.name,
            settings=_settings(run.note, experiment),
            layers=baseline.layers,
            objectives=experiment.parsed_objectives,
            limits=experiment.parsed_limits,
            baseline=baseline.metrics,
            datasets={split: len(targets) for split, (_, targets) in data.items()},
        )
        tracker.start()
        view.begin(experiment, baseline.metrics, recorded)
        job = Job(experiment=experiment, experiment_file=run.experiment_file, folder=folder, baseline=baseline, data=data)
        try:
            driver.run(search, job, Listeners(JsonlRecord(folder), live, tracker, view))
        except Exception:
            tracker.close(None)
            raise
        if search.reason == "interrupted" and not any(result.status is Status.COMPLETE for result in folder.results()):
            tracker.close(None)
            raise KeyboardInterrupt
        view.say(f"the search has ended: {search.reason}")
        return _finish(run, experiment, baseline, live, tracker, view)


def _baseline(experiment: Experiment, folder: RunFolder) -> Baseline:
    try:
        baseline = make_baseline(experiment.task, experiment.target, folder.baseline, seed=experiment.seed)
    except TrialError as error:
        raise TaskError(f"the uncompressed model cannot be exported and measured: {error}") from error
    baseline.model(experiment.task)  # a model that was changed since would fail in every trial
    return baseline


def _finish(
    run: Run, experiment: Experiment, baseline: Baseline, live: FrontFile, tracker: MlflowTracker, view: View
) -> ParetoFront:
    folder = run.folder
    front, results = live.write(), folder.results()
    problem: Exception | None = None
    view.say(f"measuring the front ({len(front.members)} models) and the uncompressed model on the test split")
    try:
        front = _tested(front, folder, experiment, baseline)
    except Exception as error:  # noqa: BLE001  # a user's function: it must not cost the report of a long search
        problem = error
    write_whole(folder.front_json, front.to_json(indent=1))
    write_report(folder, front, results, baseline.layers, title=folder.path.name)
    view.say("writing the front to MLflow")
    tracker.close(front)
    if tracker.message:
        view.warn(tracker.message)
    if problem is not None:
        raise TaskError(
            f"the front could not be measured on the test split: {type(problem).__name__}: {problem}; "
            f"nothing is lost: mend that, then `autocompress resume {folder.path}`"
        ) from problem
    return front


def _tested(front: ParetoFront, folder: RunFolder, experiment: Experiment, baseline: Baseline) -> ParetoFront:
    """The front with the test scores it has not yet: each file is scored once in its life."""

    def score(model: bytes) -> TestScore:
        return test_score(model, experiment.task, experiment.target)

    test = dict(front.test)
    for member in front.members:
        file = folder.path / (member.model or "")
        if member.number not in test and file.is_file():
            test[member.number] = score(file.read_bytes())
    return front.model_copy(update={"test": test, "baseline_test": front.baseline_test or score(baseline.onnx)})


def _settings(note: RunNote, experiment: Experiment) -> dict[str, str]:
    budget = experiment.budget
    ends = [f"{budget.trials} trials" if budget.trials else "", f"{budget.minutes:g} minutes" if budget.minutes else ""]
    sampler = experiment.sampler if isinstance(experiment.sampler, str) else type(experiment.sampler).__name__
    return {
        "experiment": note.experiment,
        "space": note.options.space or f"{experiment.space.__module__}.{getattr(experiment.space, '__name__', 'space')}",
        "sampler": sampler,
        "seed": str(experiment.seed),
        "budget": " or ".join(end for end in ends if end),
        "target": f"{experiment.target.runtime} on {experiment.target.device}, batch {experiment.target.batch_size}, "
        f"{experiment.target.threads} thread(s)",
        **experiment.settings,
    }


def _clear(folder: RunFolder) -> None:
    """Leaves no run behind: a corrected experiment may use the same folder, and must not find another's baseline."""
    shutil.rmtree(folder.baseline, ignore_errors=True)
    for file in (folder.experiment, folder.study, folder.mlflow_json, folder.run_json):
        file.unlink(missing_ok=True)


@contextmanager
def _only_here(folder: RunFolder) -> Iterator[None]:
    """Keeps a second process out of the run folder. Raises `RunFolderError` when there is one already."""
    try:
        # The log is never replaced by another file of the same name, as run.json is: a lock on it lasts.
        file = folder.log.open("a")
    except OSError as error:
        raise RunFolderError(f"cannot write to the run folder {folder.path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"another process is at work on {folder.path}; wait for it, or end it") from error
        yield


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Whatever a library has to say goes to `file` and not over the progress."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("autocompress")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    try:
        yield
    except Exception:
        _log.exception("the run ended by an error")
        raise
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.enable_default_handler()
        logging.captureWarnings(capture=False)
        ours.setLevel(level)
        root.removeHandler(handler)
        handler.close()
