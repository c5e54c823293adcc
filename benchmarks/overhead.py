"""What does the search itself cost? How busy it keeps its workers, and the driver's seconds a trial as trials pile up.

    python benchmarks/overhead.py                  (about seven minutes)
    python benchmarks/overhead.py utilisation      (two and a half of them)
    python benchmarks/overhead.py growth           (the others)

With OVERHEAD_DIR set to a folder, what is made on the way is kept there, and not made again.

**Utilisation.** A whole search as `autocompress search` runs it: Ray with two workers, record, study and MLflow. Its trials
are real ones of the toy network that take about ten seconds, because every training step sleeps: where all workers share two
cores with the driver, training would pay for what the driver does, and the driver for the training, while on the machines
that a search is for a worker has cores of its own. Counted is the time from when each worker has had its first trial until
there is no more work for one of them. What is not in a stage of a trial (compressing, training, evaluating, exporting,
measuring, each with the time that it waits for the other trial's) is overhead, a trial's pauses at its rungs included.

**Growth.** A real search over its study, with all that listens to it, is asked, reported to and told for so many trials
already on record; what trials come to is made up by a formula, for the search does not care. Those on record were sampled
at random, which is faster; those that are timed are sampled by TPE, the default, in the space of the demo and with its
halving. In MLflow those on record are copies of one. Counted is the CPU time of the thread (what else runs on the machine
hardly counts), and beside it the wall-clock time, in which the disk has its share. The goals are those of the project.
"""

import os
import shutil
import sqlite3
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from printing import print_goal, print_machine
from rich.console import Console
from torch import Tensor

import autocompress.search as searching
from autocompress import Budget, Experiment, Halving
from autocompress.baseline import load_baseline, load_data, make_baseline
from autocompress.drivers import Job, Listener
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.folder import RunFolder
from autocompress.guidance import make_prior
from autocompress.halving import Ladder
from autocompress.listeners import FrontFile, Listeners, Silent
from autocompress.pace import Earlier
from autocompress.prior import Prior
from autocompress.progress import LiveView
from autocompress.result import Rung, Status, TrialResult
from autocompress.run import run_search
from autocompress.runtimes.machine import environment
from autocompress.search import Asked, Search
from autocompress.testing import ToyTask
from autocompress.trackers.jsonl import JsonlRecord
from autocompress.trackers.mlflow import MlflowTracker, check_reachable
from autocompress.trackers.mlflow_run import MlflowRun, default_uri
from search_spaces import budgeted

WORKERS, TRIALS = 2, 16
STEPS, STEP_SECONDS = 40, 0.2
RECORDED = (100, 1000, 5000)
# Trials that are timed at each size, after so many that are not: the first ones find nothing in any cache.
TIMED, BEFORE = 40, 3
_FILE = """\
import sys
sys.path.insert(0, {benchmarks!r})
from overhead import slow_experiment
experiment = slow_experiment()
"""


class SlowTask(ToyTask):
    """Training takes its time, but no core."""

    def augment(self, inputs: Tensor, generator: Any) -> Tensor:
        time.sleep(STEP_SECONDS)
        return inputs


def slow_experiment() -> Experiment:
    """Trials of about ten seconds, eight of them asleep. None is stopped, so that all are as long."""
    space = budgeted.make(steps=STEPS)
    return Experiment(task=SlowTask(), space=space, start=budgeted.start, budget=Budget(trials=TRIALS))


# --- utilisation


def utilisation(folder: Path) -> None:
    """Prints how busy a search keeps its workers."""
    file = folder / "experiment.py"
    file.write_text(_FILE.format(benchmarks=str(Path(__file__).resolve().parent)))
    run_search(file, folder / "run", driver=TuneDriver(concurrency=WORKERS), tracking_uri=default_uri(folder))
    results = RunFolder(folder / "run").results()
    spans = [(result.started, result.started + result.compute) for result in results]
    ends = sorted(end for _, end in spans)
    start, end = ends[WORKERS - 1], ends[-WORKERS]
    inside = sum(max(0.0, min(to, end) - max(begin, start)) for begin, to in spans)
    typical = median(result.compute for result in results)
    print(f"\n{len(results)} trials of {typical:.1f} s on {WORKERS} workers, {end - start:.0f} s of each after the warm-up\n")
    print_goal("share of the workers' time inside trials", inside / (WORKERS * (end - start)), at_least=0.95)


# --- growth


@dataclass
class Stopwatch:
    """Seconds by part; what one part does on behalf of another is its own."""

    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[str] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.thread_time(), time.perf_counter()
        if self._open:
            self.cpu[self._open[-1]] += now[0] - self._since[0]
            self.wall[self._open[-1]] += now[1] - self._since[1]
        self._since = now


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Times what the search calls, for as long as the context lasts."""
    parts: list[tuple[str, Any, str]] = [
        *(("sampling", TPESampler, name) for name in vars(BaseSampler) if not name.startswith("_")),
        *(("study storage", JournalStorage, name) for name in vars(BaseStorage) if not name.startswith("_")),
        ("search space", searching, "sampled"),
        ("halving", Ladder, "goes_on"),
        ("record", JsonlRecord, "finished"),
        ("front file", FrontFile, "finished"),
        ("view", LiveView, "finished"),
        *(("the rest of the search", Search, name) for name in ("ask", "report", "tell")),
    ]
    before = [(owner, name, getattr(owner, name)) for _, owner, name in parts]
    for part, owner, name in parts:
        setattr(owner, name, _timed(getattr(owner, name), watch, part))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timed(function: Callable[..., Any], watch: Stopwatch, part: str) -> Callable[..., Any]:
    @wraps(function)
    def timed(*given: Any, **named: Any) -> Any:
        with watch.on(part):
            return function(*given, **named)

    return timed


@dataclass(frozen=True)
class Case:
    """A search in the space of the demo, and what its trials come to by a formula."""

    experiment: Experiment
    job: Job
    prior: Prior

    @property
    def baseline(self) -> dict[str, float]:
        return self.job.baseline.metrics

    def search(self, folder: RunFolder, sampler: str) -> Search:
        layers = self.job.baseline.layers
        experiment = replace(self.experiment, sampler=sampler)
        return Search(
            experiment, layers, self.baseline, study=folder.study, recorded=folder.results(), prior=self.prior, spent=60.0
        )

    def tracker(self, folder: RunFolder, uri: str) -> MlflowTracker:
        return MlflowTracker(
            folder,
            uri,
            experiment_name="overhead",
            title="overhead",
            settings={},
            layers=self.job.baseline.layers,
            objectives=self.experiment.parsed_objectives,
            limits=self.experiment.parsed_limits,
            baseline=self.baseline,
            datasets={},
        )

    def carry_out(self, search: Search, asked: Asked, listener: Listener) -> TrialResult:
        """What a driver does, without a trial: a smaller file loses more, training wins most of it back, seeds differ."""
        listener.started(asked)
        policy = asked.policy
        known = {"size_bytes": self.prior.size_bytes(policy), "latency_ms": self.prior.latency_ms(policy)}
        luck = float(np.random.default_rng(asked.seed).normal(0.0, 0.01))
        lost = 0.03 * self.prior.divergence(policy) ** 0.5 + abs(luck)
        reached: list[Rung] = []
        status = Status.COMPLETE
        for share, left in ((0.0, 4.0), (1 / 3, 1.5), (1.0, 1.0)):
            score = self.baseline["accuracy"] * float(np.exp(-left * lost))
            step = round(share * policy.finetune.steps)
            reached.append(Rung(step=step, accuracy=score, metrics=known, seconds=1.0 + 0.05 * step))
            listener.rung(asked.number, reached[-1])
            if not search.report(asked.number, reached[-1]):
                status = Status.STOPPED
                break
        metrics = {**self.baseline, **known, "accuracy": reached[-1].accuracy}
        result = TrialResult(
            number=asked.number,
            policy=policy,
            status=status,
            metrics=metrics if status is Status.COMPLETE else {},
            rungs=tuple(reached),
            seed=asked.seed,
            started=1.8e9 + 10 * asked.number,
            seconds={"compress": 1.0, "finetune": reached[-1].seconds - 1} if status is Status.COMPLETE else {},
            environment=environment(),
            summary=policy.describe(self.job.baseline.layers),
        )
        listener.finished(result)
        search.tell(result)
        return result


def case_in(folder: Path) -> Case:
    """The toy network, its sensitivities and its costs, measured unless they are there; the budget is never used up."""
    run = RunFolder(folder)
    experiment = replace(
        slow_experiment(),
        task=ToyTask(),
        halving=Halving(eta=3, rungs=(0.0, 1 / 3)),
        limits=("accuracy >= baseline - 0.03",),
        budget=Budget(trials=10 * max(RECORDED), worker_seconds=1e9),
    )
    known = (run.baseline / "baseline.json").exists()
    baseline = load_baseline(run.baseline) if known else make_baseline(experiment.task, experiment.target, run.baseline, seed=0)
    job = Job(experiment, Path(), run, baseline, load_data(experiment.task))
    prior, _ = make_prior(job, LocalDriver(), costs=None, view=Silent())
    return Case(experiment, job, prior)


def growth(case: Case, folder: Path) -> None:
    """Prints what a trial costs the driver with so many on record, by its parts."""
    sizes = recorded_runs(case, folder)
    found = {size: costs_of(case, there) for size, there in sizes.items()}
    parts = list(found[RECORDED[-1]][0].wall)
    print(f"\nmilliseconds of the driver a trial, wall-clock (CPU), mean of {TIMED}\n")
    print("  " + " " * 26 + "".join(f"{f'{size:,} on record':>20s}" for size in found))
    for part in parts:
        cells = [f"{1e3 * watch.wall[part] / TIMED:8.1f} ({1e3 * watch.cpu[part] / TIMED:7.1f})" for watch, _ in found.values()]
        print(f"  {part:26s}" + "".join(f"{cell:>20s}" for cell in cells))
    for title in found[RECORDED[0]][1]:
        print(f"  {title:26s}" + "".join(f"{seconds[title]:>18.1f} s" for _, seconds in found.values()))
    print()
    least, most = (found[size][0] for size in (RECORDED[0], RECORDED[-1]))
    for kind, few, many in (("CPU", least.cpu, most.cpu), ("wall-clock", least.wall, most.wall)):
        print_goal(f"{kind} time, {RECORDED[-1]:,} / {RECORDED[0]:,}", sum(many.values()) / sum(few.values()), at_most=3)
        few, many = ({part: value for part, value in some.items() if part != "MLflow"} for some in (few, many))
        print_goal(f"{kind} time without MLflow", sum(many.values()) / sum(few.values()), at_most=3)


def recorded_runs(case: Case, folder: Path) -> dict[int, RunFolder]:
    """A run folder with a record and a study of each size; what is there already is kept."""
    runs = {size: RunFolder(folder / f"{size}") for size in RECORDED}
    growing = RunFolder(folder / "growing")
    if all(run.record.exists() for run in runs.values()):
        return runs
    growing.path.mkdir(parents=True)
    search = case.search(growing, "random")
    start = time.perf_counter()
    with growing.record.open("w") as record:
        for size, run in runs.items():
            while len(search.results) < size:
                asked = search.ask()
                assert asked is not None, search.reason
                record.write(case.carry_out(search, asked, Silent()).to_json() + "\n")
            record.flush()
            shutil.copytree(growing.path, run.path)
            spent = time.perf_counter() - start
            ends = Counter(str(result.status) for result in search.results)
            print(f"{size:,} trials made in {spent:.0f} s: {dict(ends)}, {len(search.front.members)} on the front", flush=True)
    return runs


def costs_of(case: Case, run: RunFolder) -> tuple[Stopwatch, dict[str, float]]:
    """What further trials cost, part by part, and how many seconds it takes to open the run; `run` is left as it was."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        shutil.copytree(run.path, folder.path)
        uri = default_uri(folder.path)
        results = folder.results()
        fill(case, folder, uri, results)
        start = time.perf_counter()
        search = case.search(folder, "tpe")
        opened = time.perf_counter() - start
        tracker = case.tracker(folder, uri)
        view = LiveView(Console(file=StringIO(), width=100))
        view.begin(case.experiment, case.baseline, Earlier(tuple(results)))
        listeners = Listeners(JsonlRecord(folder), FrontFile(folder, case.experiment, case.baseline), view)
        start = time.perf_counter()
        watch = Stopwatch()
        with told_to(tracker) as written:
            for _ in range(BEFORE):
                tracker.finished(_one_more(case, search, listeners))
            _wait(written, BEFORE)
            caught_up = written[0] - start
            with watched(watch):
                more = [_one_more(case, search, listeners) for _ in range(TIMED)]
            start, cpu = time.perf_counter(), time.process_time()
            for result in more:
                tracker.finished(result)
            _wait(written, BEFORE + TIMED)
            # Nothing else was done in this process in the meantime.
            watch.wall["MLflow"], watch.cpu["MLflow"] = written[-1] - start, time.process_time() - cpu
    return watch, {"the search is open after": opened, "MLflow has caught up after": caught_up}


def _one_more(case: Case, search: Search, listeners: Listener) -> TrialResult:
    asked = search.ask()
    assert asked is not None, search.reason
    return case.carry_out(search, asked, listeners)


@contextmanager
def told_to(tracker: MlflowTracker) -> Iterator[list[float]]:
    """A tracker at work, and the moments at which it was done with a trial."""
    from autocompress.trackers.mlflow_store import Store

    written: list[float] = []
    log_growth = Store.log_growth

    def noted(self: Store, *points: Any) -> None:
        log_growth(self, *points)
        written.append(time.perf_counter())

    Store.log_growth = noted  # type: ignore[method-assign]
    tracker.start()
    try:
        yield written
    finally:
        Store.log_growth = log_growth  # type: ignore[method-assign]


def _wait(written: list[float], count: int) -> None:
    while len(written) < count:
        time.sleep(0.01)


def fill(case: Case, folder: RunFolder, uri: str, results: list[TrialResult]) -> None:
    """A store with the trials of the run in it: the first complete one as the tracker writes it, the others its copies."""
    from autocompress.trackers.mlflow_store import open_store

    check_reachable(uri)
    run = MlflowRun(
        key=uuid.uuid4().hex,
        tracking_uri=uri,
        experiment_name="overhead",
        title="overhead",
        settings={},
        objectives=case.experiment.parsed_objectives,
        limits=case.experiment.parsed_limits,
        baseline=case.baseline,
        datasets={},
    )
    store = open_store(uri, run, case.job.baseline.layers)
    first = next(result for result in results if result.status is Status.COMPLETE)
    store.log_trial(first)
    store.client.set_terminated(store.parent_run_id)
    folder.mlflow_json.write_text(run.to_json())
    template = store.children[first.number].run_id
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            columns = [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
            rows = database.execute(f"select * from {table} where run_uuid = ?", (template,)).fetchall()
            place = columns.index("run_uuid")
            marks = ", ".join("?" * len(columns))
            for result in results:
                if result.number == first.number:
                    continue
                copy = uuid.uuid5(uuid.NAMESPACE_URL, str(result.number)).hex
                copies = [(*row[:place], copy, *row[place + 1 :]) for row in rows]
                if table == "tags":
                    numbered = ("autocompress.trial", str(first.number))
                    key, value = columns.index("key"), columns.index("value")
                    copies = [
                        tuple(
                            str(result.number) if at == value and (row[key], cell) == numbered else cell
                            for at, cell in enumerate(row)
                        )
                        for row in copies
                    ]
                database.executemany(f"insert into {table} values ({marks})", copies)


def main() -> None:
    print_machine()
    which = sys.argv[1:] or ["utilisation", "growth"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("OVERHEAD_DIR", scratch))
        if "utilisation" in which:
            utilisation(folder)
        if "growth" in which:
            growth(case_in(folder / "run"), folder / "recorded")


if __name__ == "__main__":
    main()
