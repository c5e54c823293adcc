"""Runs trials on Ray Tune, on this machine or on a cluster. Tune only executes: the study and the record are ours."""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.drivers import Job, Listener, Site
from autocompress.drivers.cluster import check_answers, has_gpus, nodes_for, ray_cluster, room
from autocompress.drivers.desk import Desk
from autocompress.drivers.interrupt import INTERRUPTED, on_interrupt
from autocompress.drivers.lost import waiting_for_ray
from autocompress.drivers.measuring import costs_in_lane, spread_divergences
from autocompress.drivers.packing import Packing
from autocompress.drivers.shelf import Shelf
from autocompress.drivers.storage import check_reached
from autocompress.drivers.supplies import Supplies
from autocompress.drivers.timing import lanes, places_of, reason
from autocompress.drivers.trainer import Trainer
from autocompress.errors import InputError
from autocompress.experiment import Experiment
from autocompress.measure import Places, here
from autocompress.option import Option
from autocompress.result import TrialResult
from autocompress.search import Search
from autocompress.tables import CostTable


@dataclass(frozen=True)
class TuneDriver:
    """As many trials at once as there is room for, or `concurrency` of them.

    On the cores of this machine, or on the running Ray cluster at `address`: "auto" when this machine is one of its
    nodes, or "HOST:PORT". A cluster that adds nodes on demand needs `concurrency`. A trial whose worker dies, or
    is killed because the trial takes too long, is begun again elsewhere, `Experiment.retries` times; then it has FAILED.
    """

    address: str | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"concurrency must be at least 1, given {self.concurrency}")

    def check(self) -> None:
        """See `Driver.check`. Raises `UnreachableError` when no cluster answers at `address`."""
        if self.address is not None:
            check_answers(self.address)

    @contextmanager
    def places(self, site: Site) -> Iterator[Places]:
        """See `Driver.places`: on the nodes of a cluster, else in this process. Raises `UnreachableError`."""
        target = site.experiment.target
        if self.address is None:
            yield here(target)
            return
        with self._ray(site) as there, lanes(target, there, joined=True) as actors:
            yield places_of(target, actors)

    @contextmanager
    def session(self, job: Job) -> Iterator[None]:
        """See `Driver.session`. Raises `UnreachableError`."""
        with self._ray(job):
            yield

    def divergences(self, options: Sequence[Option], job: Job) -> Iterator[tuple[Option, float | None, float]]:
        """See `Driver.divergences`. Raises `InputError` when a function of the task fails or workers die again and again."""
        with self._ray(job) as there:
            cpus, gpus = job.experiment.cpus_per_trial, self._packing(job.experiment).next.gpus
            workers = self._concurrency(job.experiment, gpus)
            yield from spread_divergences(options, Supplies.of(job, there), workers, cpus=cpus, gpus=gpus)

    def costs(self, job: Job, policies: int) -> CostTable:
        """See `Driver.costs`. Raises `InputError` when a function of the task fails or the worker dies twice."""
        with self._ray(job) as there:
            return costs_in_lane(Supplies.of(job, there), policies)

    def run(self, search: Search, job: Job, listener: Listener) -> None:
        """See `Driver.run`. Raises `UnreachableError`, and `ExperimentError` when no node is large enough for a trial."""
        try:
            with self._ray(job) as there:
                blame = waiting_for_ray()
                desk, most = self._desk(search, job, listener, before_blame=blame)
                try:
                    if self.address is not None and job.folder.storage is not None:
                        check_reached(job.folder.storage, by=nodes_for(job.experiment.cpus_per_trial))
                    with _equipped(job, there, joined=self.address is not None) as shelf:
                        _fit(desk, job.experiment, most, shelf)
                except Exception:
                    blame()
                    raise
            if desk.failure is not None:
                raise desk.failure
        except KeyboardInterrupt:
            search.stop(search.reason or INTERRUPTED)

    def _desk(self, search: Search, job: Job, listener: Listener, *, before_blame: Callable[[], None]) -> tuple[Desk, int]:
        """The desk, and how many trials there may ever be at once."""
        experiment, limit = job.experiment, job.experiment.trial_minutes
        packing = self._packing(experiment, search.results)
        most = cache(lambda part: self._concurrency(experiment, part.gpus))
        ever = most(packing.next)  # raises, before anything runs, when there is no room
        if experiment.gpus_per_trial == "auto":  # as far as CPUs reach; how many share a GPU is not known yet
            ever = max(ever, self._concurrency(experiment, 0.0))
        desk = Desk(
            search,
            listener,
            job.baseline.layers,
            packing=packing,
            most=most,
            trial_minutes=limit,
            before_blame=before_blame,
        )
        return desk, ever

    def _packing(self, experiment: Experiment, results: Sequence[TrialResult] = ()) -> Packing:
        grows = self.address is not None and self.concurrency is not None
        return Packing(experiment.gpus_per_trial, there=grows or has_gpus(), results=results)

    def _ray(self, site: Site) -> AbstractContextManager[Path]:
        file = site.experiment_file.resolve()
        return ray_cluster(self.address, threads=site.threads, experiment_file=file, run=site.folder)

    def _concurrency(self, experiment: Experiment, gpus: float) -> int:
        joined = self.address is not None
        if self.concurrency is not None and joined:
            return self.concurrency  # nodes that an autoscaler may yet add are not known here
        remedy = "change cpus_per_trial or gpus_per_trial"
        if joined:
            remedy += ", or, on a cluster that grows by itself, say how many trials may run at once (--concurrency)"
        fit = room(experiment.cpus_per_trial, gpus, remedy=remedy)
        return min(fit, self.concurrency or fit)


def _fit(desk: Desk, experiment: Experiment, concurrency: int, shelf: str) -> None:
    cpus = experiment.cpus_per_trial  # alone: what the function refers to travels with it

    def resources(trial: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": trial["gpus"]}])

    limiting = [] if experiment.trial_minutes is None else [_Limiting(desk, 60 * experiment.trial_minutes)]
    with tempfile.TemporaryDirectory(prefix="autocompress-tune-") as storage, on_interrupt(desk.interrupt):
        tune.Tuner(
            tune.with_resources(Trainer, resources),
            param_space={"shelf": shelf},
            tune_config=tune.TuneConfig(
                search_alg=_Asking(desk),
                scheduler=_Judging(desk),
                num_samples=-1,
                # Without it Tune starts one trial at a time, whatever the searcher offers.
                max_concurrent_trials=concurrency,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=storage,
                verbose=0,
                stop=_Ending(desk),
                callbacks=[_Telling(desk), *limiting, JsonLoggerCallback()],  # type: ignore[no-untyped-call]
                failure_config=tune.FailureConfig(max_failures=experiment.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


class _NotStored:
    """Tune writes all it is given into snapshots that nobody reads; a search does not belong there."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Asking(_NotStored, Searcher):
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's FINISHED is a string
        trial = self._desk.ask(trial_id)
        return trial if trial is not None or self._desk.waiting else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: Tune tells the callback too, and there with the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see `_NotStored`."""


class _Judging(_NotStored, FIFOScheduler):
    """Asks after each rung whether the trial goes on; starts trials in the order in which they came."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._waiting: deque[Trial] = deque()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._waiting.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        # Tune's own goes through all trials there have ever been, ten times a second and more.
        while self._waiting and self._waiting[0].status != Trial.PENDING:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return str(self.CONTINUE if self._desk.rung(trial.trial_id, result) else self.STOP)


class _Telling(_NotStored, tune.Callback):
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._desk.started(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        self._desk.result(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._desk.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._desk.lost(trial.trial_id, _error(trial))


class _Limiting(_NotStored, tune.Callback):
    """Kills the worker of a trial that takes longer than `seconds`: Tune has no limit for a step that does not end."""

    def __init__(self, desk: Desk, seconds: float) -> None:
        super().__init__(desk)
        self._seconds = seconds
        self._running: dict[str, tuple[Trial, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_seconds": self._seconds}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._running[trial.trial_id] = trial, time.monotonic() + self._seconds

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._running.pop(trial.trial_id, None)

    on_trial_complete = on_trial_error = on_trial_recover

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        for trial_id, (trial, until) in list(self._running.items()):
            actor = trial.temporary_state.ray_actor
            if now > until and actor is not None:
                del self._running[trial_id]
                self._desk.late(trial_id)
                ray.kill(actor)


class _Ending(_NotStored, tune.Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.closed


@contextmanager
def _equipped(job: Job, experiment_file: Path, *, joined: bool) -> Iterator[str]:
    """The name of the shelf from which trainers get all they need, for as long as the context lasts."""
    name = f"autocompress-shelf-{uuid4().hex}"
    on_this_node = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    # Whoever it is that ends its process, all that it does can be done again.
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    shelves = ray.remote(Shelf).options(name=name, scheduling_strategy=on_this_node, **options)
    with lanes(job.experiment.target, experiment_file, joined=joined) as actors:
        equipment = {
            "supplies": ray.put(Supplies.of(job, experiment_file)),
            "baseline_files": {runtime: ray.put(file) for runtime, file in job.baseline.files.items()},
            "lanes": actors,
            "artifacts": job.folder.storage,
        }
        shelf: Any = shelves.remote(str(job.folder.path), cloudpickle.dumps(equipment))  # type: ignore[no-untyped-call]
        try:
            yield name
        finally:
            ray.kill(shelf)


def _error(trial: Trial) -> str:
    # Not by Tune's own accessors: they read a copy that is not there yet.
    if trial.pickled_error_file is not None:
        return reason(cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()))
    return reason(RuntimeError(Path(trial.error_file).read_text()))


def _folder_name(trial: Trial) -> str:
    return f"{trial.config['number']:04d}"
