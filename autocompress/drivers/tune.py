"""Runs trials on Ray Tune, on this machine or on a cluster. Tune only executes: the study and the record are ours."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.drivers import Job, Listener
from autocompress.drivers.cluster import check_answers, lane_resources, ray_cluster, room
from autocompress.drivers.interrupt import on_interrupt
from autocompress.drivers.shelf import Shelf
from autocompress.drivers.timing import LatencyLane, reason
from autocompress.drivers.trainer import Supplies, Trainer
from autocompress.errors import InputError, UnreachableError
from autocompress.experiment import Experiment
from autocompress.layer import Layers
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked, Search

_READY_SECONDS = 120.0


@dataclass(frozen=True)
class TuneDriver:
    """As many trials at once as there is room for, or `concurrency` of them.

    On the cores of this machine, or on the running Ray cluster at `address`: "auto" when this machine is one of its
    nodes, or "HOST:PORT". A cluster that adds nodes on demand needs `concurrency`. A trial whose worker dies is begun
    once again elsewhere, then it counts as FAILED.
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

    def run(self, search: Search, job: Job, listener: Listener) -> None:
        """See `Driver.run`. Raises `UnreachableError`, and `ExperimentError` when no node is large enough for a trial."""
        file = job.experiment_file.resolve()
        try:
            with ray_cluster(self.address, threads=job.threads, experiment_file=file, run=job.folder) as there:
                desk = _Desk(search, listener, job.baseline.layers)
                self._fit(desk, job, there)
            if desk.failure is not None:
                raise desk.failure
        except KeyboardInterrupt:
            search.stop("interrupted")

    def _fit(self, desk: "_Desk", job: Job, experiment_file: Path) -> None:
        experiment = job.experiment
        concurrency = self._concurrency(experiment)
        lane, shelf = _lane(job, joined=self.address is not None), _shelf(job)
        trainer = tune.with_parameters(Trainer, supplies=_supplies(job, experiment_file), lane=lane, shelf=shelf)
        resources = {"cpu": experiment.cpus_per_trial, "gpu": experiment.gpus_per_trial}
        with tempfile.TemporaryDirectory(prefix="autocompress-tune-") as storage, on_interrupt(desk.interrupt):
            tune.Tuner(
                tune.with_resources(trainer, resources),
                tune_config=tune.TuneConfig(
                    search_alg=_Asking(desk),
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
                    callbacks=[_Telling(desk), JsonLoggerCallback()],  # type: ignore[no-untyped-call]
                    failure_config=tune.FailureConfig(max_failures=1),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()

    def _concurrency(self, experiment: Experiment) -> int:
        joined = self.address is not None
        if self.concurrency is not None and joined:
            return self.concurrency  # nodes that an autoscaler may yet add are not known here
        remedy = "change cpus_per_trial or gpus_per_trial"
        if joined:
            remedy += ", or, on a cluster that grows by itself, say how many trials may run at once (--concurrency)"
        fit = room(experiment.cpus_per_trial, experiment.gpus_per_trial, remedy=remedy)
        return min(fit, self.concurrency or fit)


@dataclass
class _Running:
    asked: Asked
    since: float = field(default_factory=time.time)
    rungs: list[Rung] = field(default_factory=list)
    announced: bool = False


class _Desk:
    """Stands between Tune, which knows trials by ids of its own, and the search, which knows them by number."""

    def __init__(self, search: Search, listener: Listener, layers: Layers) -> None:
        self._search = search
        self._listener = listener
        self._layers = layers
        self._running: dict[str, _Running] = {}
        self.closed = False
        self.failure: Exception | None = None

    def ask(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial for Tune to start, None when it should ask again later, `Searcher.FINISHED` when all is done."""
        with self._guarded():
            asked = None if self.closed else self._search.ask()
            if asked is not None:
                self._running[trial_id] = _Running(asked)
                return {"number": asked.number, "policy": asked.policy.to_json(), "seed": asked.seed}
        return None if self._running and not self.closed else str(Searcher.FINISHED)

    def started(self, trial_id: str) -> None:
        with self._guarded():
            self._announce(self._running[trial_id])

    def result(self, trial_id: str, reported: dict[str, Any]) -> None:
        with self._guarded():
            if "result" in reported:
                self._finish(trial_id, TrialResult.from_json(reported["result"], source="a worker's result"))
            elif "rung" in reported:
                self._rung(self._running[trial_id], Rung.from_json(reported["rung"], source="a worker's rung"))

    def ended(self, trial_id: str) -> None:
        """A trial that has given no result until now was stopped on purpose."""
        with self._guarded():
            if trial_id in self._running:
                self._finish(trial_id, self._without_metrics(trial_id, Status.STOPPED, None))

    def lost(self, trial_id: str, error: str) -> None:
        with self._guarded():
            if trial_id in self._running:
                self._finish(trial_id, self._without_metrics(trial_id, Status.FAILED, error))

    def interrupt(self) -> None:
        self._search.stop("interrupted")
        self.closed = True

    def _announce(self, running: _Running) -> None:
        if not running.announced:
            running.announced = True
            self._listener.started(running.asked)

    def _rung(self, running: _Running, rung: Rung) -> None:
        # A trial begun again on another worker passes the same rungs again.
        if not running.rungs or rung.step > running.rungs[-1].step:
            running.rungs.append(rung)
            self._listener.rung(running.asked.number, rung)

    def _finish(self, trial_id: str, result: TrialResult) -> None:
        self._announce(self._running.pop(trial_id))
        self._listener.finished(result)
        self._search.tell(result)

    def _without_metrics(self, trial_id: str, status: Status, error: str | None) -> TrialResult:
        running = self._running[trial_id]
        asked = running.asked
        return TrialResult(
            number=asked.number,
            policy=asked.policy,
            status=status,
            rungs=tuple(running.rungs),
            error=error,
            seed=asked.seed,
            started=running.since,
            summary=asked.policy.describe(self._layers),
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised again by the driver; Tune would take it for a trial's
            self.failure = self.failure or error
            self.closed = True


class _NotStored:
    """Tune writes all it is given into snapshots that nobody reads; a search does not belong there."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Asking(_NotStored, Searcher):
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's FINISHED is a string
        return self._desk.ask(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: Tune tells the callback too, and there with the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see `_NotStored`."""


class _Telling(_NotStored, tune.Callback):
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._desk.started(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        self._desk.result(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._desk.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._desk.lost(trial.trial_id, _error(trial))


class _Ending(_NotStored, tune.Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.closed


def _supplies(job: Job, experiment_file: Path) -> Supplies:
    return Supplies(
        experiment_file=str(experiment_file),
        target=job.experiment.target.to_json(),
        threads=job.threads,
        baseline=job.baseline,
        data=job.data,
    )


def _lane(job: Job, *, joined: bool) -> Any:
    lane: Any = (
        ray.remote(LatencyLane)
        .options(num_cpus=0, resources=lane_resources(), max_restarts=-1, max_task_retries=1)
        .remote(job.experiment.target.to_json())
    )
    if joined:
        try:
            ray.get(lane.ready.remote(), timeout=_READY_SECONDS)
        except RayError as error:
            raise UnreachableError(
                f"the cluster does not run autocompress ({reason(error)}); its nodes need autocompress, Ray and Python as "
                "they are here, and the same RAY_AUTH_MODE"
            ) from error
    return lane


def _shelf(job: Job) -> Any:
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Shelf).options(num_cpus=0, scheduling_strategy=here).remote(str(job.folder.path))


def _error(trial: Trial) -> str:
    # Not by Tune's own accessors: they read a copy that is not there yet.
    if trial.pickled_error_file is not None:
        return reason(cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()))
    return reason(RuntimeError(Path(trial.error_file).read_text()))


def _folder_name(trial: Trial) -> str:
    return f"{trial.config['number']:04d}"
