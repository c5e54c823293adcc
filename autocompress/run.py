"""The conductor: brings an experiment, a search, a driver, the trackers and the report together over one run folder."""

import logging
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from autocompress import gpu, nested
from autocompress.artifacts import InStorage
from autocompress.artifacts import absolute as absolute_storage
from autocompress.baseline import Baseline, load_data, make_baseline
from autocompress.credentials import public_uri, secrets_of
from autocompress.drivers import Driver, Job, Site
from autocompress.drivers.interrupt import INTERRUPTED, TERMINATED
from autocompress.errors import InputError, RunFolderError, StorageError, TaskError, TrialError, UnreachableError
from autocompress.experiment import Experiment, load_experiment
from autocompress.folder import RunFolder, write_whole
from autocompress.front import ParetoFront
from autocompress.guard import disk_told, logging_to, only_here
from autocompress.importance import write_importance
from autocompress.listeners import FrontFile, Listeners, Silent, View, Views
from autocompress.measure import size_bytes, test_score
from autocompress.mending import mend, with_study_mended
from autocompress.opened import ArtifactsNote, Options, Run, RunNote, StudyNote, open_run
from autocompress.pace import Earlier
from autocompress.report import write_report
from autocompress.result import Status, TrialResult
from autocompress.search import Search
from autocompress.session_file import SessionFile, seconds_searched
from autocompress.shared import SharedStudy
from autocompress.study import absolute, database_told, has_study, open_database
from autocompress.trackers.jsonl import JsonlRecord
from autocompress.trackers.mlflow import MlflowTracker, silence
from autocompress.trial_files import read_trial_file

_log = logging.getLogger(__name__)
_PACKAGES = ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "ray", "mlflow")


@dataclass(frozen=True)
class Ended:
    """How a session of a search ended: with this front, and whether because it was interrupted."""

    front: ParetoFront
    interrupted: bool


def usual_folder(experiment_file: Path) -> Path:
    """Where a search goes that is given no folder: ``runs/<experiment>-<date>-<time>``."""
    return Path("runs") / f"{experiment_file.stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def run_search(
    experiment_file: Path,
    folder: Path,
    *,
    driver: Driver,
    tracking_uri: str,
    options: Options | None = None,
    storage: str | None = None,
    study: str | None = None,
    artifacts: str | None = None,
    view: View | None = None,
) -> ParetoFront:
    """Searches from the beginning, in a new run folder, and returns the front, scored on the test split.

    With `storage`, the URL of a database, the study is kept there, under the name of the run folder; with `study` under that
    name, also when there is one already: then the search joins those that work on it. With `artifacts`, the URL of a
    storage, workers keep the files of trials there.
    Raises `InputError` for whatever the user can mend; then a run that had no trial leaves no run behind. Raises
    `KeyboardInterrupt` when it was interrupted before any trial was complete, `SystemExit` (143) when it was told to end by
    SIGTERM: then what has finished is kept, and nothing more is measured.
    """
    options, view = options or Options(), view or Silent()
    if options.space is not None and options.space.endswith(".py"):
        options = options.model_copy(update={"space": str(Path(options.space).resolve())})
    if options.costs is not None:
        options = options.model_copy(update={"costs": str(Path(options.costs).resolve())})
    experiment = options.apply(load_experiment(experiment_file))
    where = RunFolder(folder)
    shared = _shared(storage, study, where)
    look_for_mlflow(tracking_uri, view)
    driver.check()
    if artifacts is not None:  # of that name there may be others, from other machines
        where.artifacts = InStorage(absolute_storage(artifacts), f"{where.path.name}-{uuid4().hex[:8]}")
        where.artifacts.claim()
    where.create()
    with only_here(where):
        where.create()  # again: another process may have begun a run here, and ended
        return _begin(experiment_file, where, experiment, options, driver, tracking_uri, shared, storage, view)


def _shared(storage: str | None, name: str | None, where: RunFolder) -> StudyNote | None:
    """The study in the database that a new run works on. Raises `InputError` when there is one that was not asked for."""
    if storage is None:
        if name is not None:
            raise InputError(f"the study {name!r} is looked for in a database: say in which (--storage)")
        return None
    chosen = name or where.path.name
    if has_study(open_database(storage), chosen) and name is None:
        raise InputError(
            f"{public_uri(storage)} has a study {chosen!r}; join it by --study {chosen}, or give --study another name"
        )
    return StudyNote(storage=public_uri(absolute(storage)), name=chosen, run=uuid4().hex)


def _begin(
    experiment_file: Path,
    where: RunFolder,
    experiment: Experiment,
    options: Options,
    driver: Driver,
    tracking_uri: str,
    shared: StudyNote | None,
    storage: str | None,
    view: View,
) -> ParetoFront:
    note = RunNote(
        experiment=str(Path(experiment_file).resolve()),
        options=options,
        tracking_uri=public_uri(tracking_uri),
        started=time.time(),
        versions={name: version(name) for name in _PACKAGES},
        study=shared,
        artifacts=ArtifactsNote.of(where),
    )
    shutil.copyfile(experiment_file, where.experiment)
    try:
        return _conduct(Run(where, note, Path(note.experiment)), experiment, driver, tracking_uri, view, storage).front
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
    storage: str | None = None,
    artifacts: str | None = None,
    view: View | None = None,
) -> ParetoFront:
    """Goes on with a run that was interrupted or killed, or whose budget (`trials` in all, or `minutes` from now) is raised.

    Of a budget in minutes that is not raised, what earlier sessions have left is left.

    `tracking_uri` None is where the run was logged before, `storage` None the database that has its study, `artifacts` None
    the storage of its trials' files, all without the credentials that they were given with: those are not kept. Raises as
    `run_search` does.
    """
    view = view or Silent()
    run = open_run(folder)
    if run.note.baseline_of is not None:
        raise InputError(
            f"{folder} is a rival of the run {run.note.baseline_of}; go on with it by `autocompress baseline` on that run"
        )
    if storage is not None and run.note.study is None:
        raise InputError(f"{folder} keeps its study in its own folder: leave out --storage")
    if artifacts is not None and run.note.artifacts is None:
        raise InputError(f"{folder} keeps the files of its trials itself: leave out --artifacts")
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
    if storage is None and run.note.study is not None:
        try:
            open_database(run.note.study.storage)
        except UnreachableError as error:
            raise UnreachableError(
                f"{error}; credentials are not kept: give --storage again, or set PGUSER and PGPASSWORD"
            ) from None
    if (kept := run.note.artifacts) is not None:
        look_for_artifacts(run.folder, InStorage(absolute_storage(artifacts or kept.storage), kept.name))
        run = replace(run, note=run.note.model_copy(update={"artifacts": ArtifactsNote.of(run.folder)}))
    look_for_mlflow(uri, view, kept=tracking_uri is None)
    driver.check()
    searched = seconds_searched(run.folder) if minutes is None else 0.0
    return conduct(run, experiment, driver, uri, view, storage=storage, searched=searched).front


def look_for_artifacts(folder: RunFolder, artifacts: InStorage) -> None:
    """Has the files of trials kept in a storage that a run used before. Raises `UnreachableError` when they are not there."""
    try:
        artifacts.check()
    except (StorageError, UnreachableError) as error:
        raise UnreachableError(
            f"{error}; this run keeps its files there: give --artifacts again if it needs credentials, which are not kept, "
            "or has moved"
        ) from None
    folder.artifacts = artifacts


def look_for_mlflow(uri: str, view: View, *, kept: bool = False) -> None:
    """A server that is away is told, and costs nothing else. Raises `UnreachableError` for what can be no store.

    A `uri` that was `kept` in the run folder has lost its credentials.
    """
    problem = silence(uri)
    if problem is not None:
        again = "; if it needs credentials, give --tracking-uri again: they are not kept" if kept else ""
        view.warn(
            f"MLflow at {public_uri(uri)} does not answer ({problem}); the search goes on without, and writes all that MLflow "
            f"has missed when it answers again, at the latest by `autocompress sync`{again}"
        )


def conduct(
    run: Run,
    experiment: Experiment,
    driver: Driver,
    tracking_uri: str,
    view: View,
    *,
    storage: str | None = None,
    searched: float = 0.0,
) -> Ended:
    """Searches in the folder of `run`, from where its record ends, and finishes it. Raises as `run_search` does.

    A folder that has a baseline keeps it. Of the budget's minutes `searched` seconds have passed.
    """
    with only_here(run.folder):
        return _conduct(run, experiment, driver, tracking_uri, view, storage, searched)


def _conduct(
    run: Run,
    experiment: Experiment,
    driver: Driver,
    tracking_uri: str,
    view: View,
    storage: str | None,
    searched: float = 0.0,
) -> Ended:
    folder = run.folder
    storage = storage or (run.note.study.storage if run.note.study else None)
    with (
        disk_told(folder),
        logging_to(folder.log, secrets_of(tracking_uri, storage, folder.storage.url if folder.storage else None)),
        database_told(storage, folder.path),
    ):
        write_whole(folder.run_json, run.note.to_json(indent=1))
        session = SessionFile(folder)
        view = Views(session, view)
        mend(folder, view.warn)
        recorded = folder.results()
        if gpu.is_left_idle(experiment.gpus_per_trial):
            view.warn(
                "this machine has a GPU, and trials train on its CPU: Experiment(gpus_per_trial='auto') gives them the GPU"
            )
        if not (folder.baseline / "baseline.json").exists():
            view.say("preparing the uncompressed model: train if the task trains, export, measure")
        baseline = _baseline(Site(experiment, run.experiment_file, folder), driver)
        data = load_data(experiment.task)
        job = Job(experiment=experiment, experiment_file=run.experiment_file, folder=folder, baseline=baseline, data=data)
        live = FrontFile(folder, experiment, baseline.metrics)
        tracker = MlflowTracker(
            folder,
            tracking_uri,
            experiment_name=Path(run.note.experiment).stem,
            title=run.title,
            baseline_of=run.note.baseline_of,
            settings=_settings(run.note, experiment),
            layers=baseline.layers,
            objectives=experiment.parsed_objectives,
            limits=experiment.parsed_limits,
            scoring=experiment.task.scoring,
            baseline=baseline.metrics,
            datasets={split: nested.count(targets) for split, (_, targets) in data.items()},
            digests={split: nested.digest(*pair) for split, pair in data.items()},
        )
        with driver.session(job):
            search = _search(run, job, driver, recorded, view, storage, searched)
            tracker.start()
            spent = search.used_seconds - sum(result.compute for result in recorded)
            view.begin(experiment, baseline.metrics, Earlier(tuple(recorded), spent, searched))
            try:
                driver.run(search, job, Listeners(JsonlRecord(folder), live, tracker, view))
            except Exception:
                tracker.close(None)
                raise
        session.ended(search.reason or "it was ended")
        if search.reason == TERMINATED:
            live.write()
            tracker.close(None)
            view.warn(f"told to end by SIGTERM; what has finished is kept: `autocompress resume {folder.path}` goes on")
            raise SystemExit(128 + signal.SIGTERM)
        if search.reason == INTERRUPTED and not any(result.status is Status.COMPLETE for result in folder.results()):
            tracker.close(None)
            raise KeyboardInterrupt
        (view.warn if search.hopeless else view.say)(f"the search has ended: {search.reason}")
        front = _finish(run, job, driver, live, tracker, view)
        session.say("finished")
        return Ended(front, interrupted=search.reason == INTERRUPTED)


def _search(
    run: Run,
    job: Job,
    driver: Driver,
    recorded: Sequence[TrialResult],
    view: View,
    storage: str | None,
    searched: float,
) -> Search:
    prior, spent = None, 0.0
    if job.experiment.needs_prior:
        from autocompress.guidance import make_prior

        costs = run.note.options.costs
        prior, spent = make_prior(job, driver, costs=None if costs is None else Path(costs), view=view)
    study: Path | SharedStudy = job.folder.study
    if storage is not None and (shared := run.note.study) is not None:
        study = SharedStudy(open_database(storage), shared.name, shared.run)

    def search() -> Search:
        return Search(
            job.experiment,
            job.baseline.layers,
            job.baseline.metrics,
            study=study,
            recorded=recorded,
            prior=prior,
            spent=spent,
            searched=searched,
        )

    return with_study_mended(search, study, view.warn) if isinstance(study, Path) else search()


def _baseline(site: Site, driver: Driver) -> Baseline:
    experiment, folder = site.experiment, site.folder.baseline
    there = (folder / "baseline.json").exists()
    try:
        with nullcontext() if there else driver.places(site) as places:
            baseline = make_baseline(experiment.task, experiment.target, folder, seed=experiment.seed, places=places)
    except TrialError as error:
        raise TaskError(f"the uncompressed model cannot be exported and measured: {error}") from error
    baseline.model(experiment.task)  # a model that was changed since would fail in every trial
    return baseline


def _finish(run: Run, job: Job, driver: Driver, live: FrontFile, tracker: MlflowTracker, view: View) -> ParetoFront:
    folder, experiment, baseline = run.folder, job.experiment, job.baseline
    front, results = live.write(), folder.results()
    problem: Exception | None = None
    view.say(f"measuring the front ({len(front.members)} models) and the uncompressed model on the test split")
    try:
        front = _tested(front, job, driver, view)
    except Exception as error:  # noqa: BLE001  # a user's function: it must not cost the report of a long search
        problem = error
    write_whole(folder.front_json, front.to_json(indent=1))
    try:
        if run.note.study is None:  # that of several runs says nothing of this one
            write_importance(folder, experiment.parsed_objectives, seed=experiment.seed)
    except Exception:  # noqa: BLE001  # a forest grown on few points: it must not cost the report either
        _log.exception("the importances of the knobs could not be computed")
    tracker.settle()
    write_report(folder, front, results, baseline.layers, title=run.title)
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


def _tested(front: ParetoFront, job: Job, driver: Driver, view: View) -> ParetoFront:
    """The front with the test scores it has not yet: each file is scored once in its life."""
    missing: dict[int, bytes] = {}
    for member in front.members:
        if member.number in front.test or member.model is None:
            continue
        name = Path(member.model).name
        try:
            content = read_trial_file(job.folder, member, name)
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                view.warn(f"{error}; it is not tested")
            continue
        if size_bytes(content) == member.metrics["size_bytes"]:
            missing[member.number] = content
        else:  # an older record, without sums
            where = job.folder.artifacts.where(member.number, name)
            view.warn(f"the file of trial {member.number} is damaged: {where} has {len(content):,} bytes; it is not tested")
    if front.baseline_test is not None and not missing:
        return front
    with driver.places(job) as places:
        place = places[job.experiment.target.alone.name]
        test = {number: test_score(file, job.experiment.task, place) for number, file in missing.items()}
        uncompressed = front.baseline_test or test_score(job.baseline.file, job.experiment.task, place)
    return front.model_copy(update={"test": front.test | test, "baseline_test": uncompressed})


def _settings(note: RunNote, experiment: Experiment) -> dict[str, str]:
    sampler = experiment.sampler if isinstance(experiment.sampler, str) else type(experiment.sampler).__name__
    return {
        "experiment": note.experiment,
        "space": note.options.space or f"{experiment.space.__module__}.{getattr(experiment.space, '__name__', 'space')}",
        "sampler": sampler,
        "seed": str(experiment.seed),
        "budget": experiment.budget.words,
        "target": experiment.target.names,
        **experiment.settings,
    }


def _clear(folder: RunFolder) -> None:
    """Leaves no run behind: a corrected experiment may use the same folder, and must not find another's baseline."""
    shutil.rmtree(folder.baseline, ignore_errors=True)
    measured = (folder.sensitivity, folder.costs, folder.study)
    for file in (folder.experiment, *measured, folder.mlflow_json, folder.session, folder.run_json):
        file.unlink(missing_ok=True)
