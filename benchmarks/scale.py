"""Does a search hold 200 trials at once, and 10,000 in all?

    python benchmarks/scale.py                          (all three; half an hour)
    python benchmarks/scale.py policies                 (one minute)
    python benchmarks/scale.py growth                   (ten)
    python benchmarks/scale.py workers --workers 40     (needs psutil, and 0.2 GB of memory a worker)

With SCALE_DIR set to a folder, what is made on the way is kept there, and not made again.

**Policies.** A search that has told 100 trials is asked for 200 policies before any of them ends. Counted is how many times
its sampler had to be asked, for a policy that was run or runs already is not run again, and how far the policies lie
apart. Then trials end and others begin, with 200 under way: what one of them costs the driver.

**Growth.** As in `benchmarks/overhead.py`, up to 10,000 trials on record, and the memory that they take.

**Workers.** A search through Ray Tune on a cluster of simulated nodes (`ray.cluster_utils`), with record, study, front and
MLflow. Trials sleep in processes that load no torch (`benchmarks/sleeping.py`): where all workers share a machine with the
driver, nothing else would tell what the driver takes. As many workers as fit into the memory, 200 at most. Counted are,
from when each has had its first trial until there is no more work for one of them, the CPU time of the driver's process and
the share of the workers' time that is inside trials.
"""

import argparse
import gc
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from optuna.samplers import TPESampler
from overhead import Case, case_in, costs_of, growth_table, recorded_runs
from printing import print_goal, print_machine
from ray.cluster_utils import Cluster
from sleeping import SECONDS, SIZE, SleepingTrainer

import autocompress.drivers.tune as tuning
from autocompress import Budget
from autocompress.drivers.tune import TuneDriver
from autocompress.folder import RunFolder
from autocompress.listeners import FrontFile, Listeners, Silent
from autocompress.result import TrialResult
from autocompress.search import Asked, Search
from autocompress.study import open_journal
from autocompress.trackers.jsonl import JsonlRecord
from autocompress.trackers.mlflow import check_reachable
from autocompress.trackers.mlflow_run import default_uri

AT_ONCE, TOLD, TURNS = 200, 100, 40
RECORDED = (100, 1000, 10_000)
NODES, WORKER_GB = 4, 0.2


# --- policies


def policies(case: Case, folder: Path) -> None:
    """Prints how different the policies of concurrent workers are, with TPE as it is, without its liar, and at random."""
    samplers = {
        "TPE": "tpe",
        "TPE, no constant liar": TPESampler(multivariate=True, seed=0, constant_liar=False),
        "random": "random",
    }
    print(f"\n{AT_ONCE} policies in flight, {TOLD} trials told before\n")
    for name, sampler in samplers.items():
        run = RunFolder(Path(tempfile.mkdtemp(dir=folder)) / "run")
        run.path.mkdir()
        open_journal(run.study)
        search = Search(
            replace(case.experiment, sampler=sampler, halving=None),
            case.job.baseline.layers,
            case.baseline,
            study=run.study,
            prior=case.prior,
        )
        for _ in range(TOLD):
            case.carry_out(search, _asked(search), Silent())
        first = _asked(search)
        start = time.process_time()
        flying = [first, *(_asked(search) for _ in range(AT_ONCE - 1))]
        cost = (time.process_time() - start) / (AT_ONCE - 1)
        proposed = flying[-1].number - first.number + 1
        distinct = len({asked.policy.key() for asked in flying})
        start = time.process_time()
        for place in range(TURNS):
            case.end(search, flying[place], Silent())
            flying.append(_asked(search))
        turn = (time.process_time() - start) / TURNS
        print(
            f"  {name:24s} {distinct} distinct of {len(flying) - TURNS}, proposed {proposed} times; mean distance "
            f"{_apart(case, flying[:AT_ONCE]):.3f}; {1e3 * cost:.1f} ms of CPU to ask, {1e3 * turn:.1f} ms to tell and ask"
        )
        if name == "TPE":
            print_goal("distinct policies of those proposed", distinct / proposed, at_least=0.95)


def _apart(case: Case, flying: list[Asked]) -> float:
    """The mean distance between two policies in flight, by what they come to: logarithms of size, time and divergence."""
    foretold = [
        (case.prior.size_bytes(one.policy), case.prior.latency_ms(one.policy), case.prior.divergence(one.policy))
        for one in flying
    ]
    points = np.log(np.maximum(np.array(foretold), 1e-9))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return float(gaps.sum() / (len(flying) * (len(flying) - 1)))


def _asked(search: Search) -> Asked:
    asked = search.ask()
    assert asked is not None, search.reason
    return asked


# --- growth


def growth(case: Case, folder: Path) -> None:
    """Prints what a trial costs the driver, and what memory a search takes, with so many on record."""
    runs = recorded_runs(case, folder, RECORDED)
    memory = {}
    for size, run in runs.items():
        gc.collect()
        before = psutil.Process().memory_info().rss
        search = case.search(run, "tpe")
        live = FrontFile(run, case.experiment, case.baseline)
        memory[size] = (psutil.Process().memory_info().rss - before) / 1e6
        del search, live
    growth_table({size: costs_of(case, run) for size, run in runs.items()})
    print("  memory of the search: " + ", ".join(f"{size:,} on record {taken:.0f} MB" for size, taken in memory.items()))
    print(f"  memory of this process: {psutil.Process().memory_info().rss / 1e6:.0f} MB")


# --- workers


class Stopwatch:
    """A listener that notes the CPU time of this process whenever a trial has ended."""

    def __init__(self) -> None:
        self.cpu: list[float] = []

    def started(self, asked: Asked) -> None:
        """Nothing."""

    def rung(self, number: int, rung: object) -> None:
        """Nothing."""

    def finished(self, result: TrialResult) -> None:
        self.cpu.append(time.process_time())


def workers(case: Case, folder: Path, count: int, seconds: float) -> None:
    """Prints how busy that many workers are, and what the driver takes."""
    trials = 3 * count
    here = str(Path(__file__).resolve().parent)
    os.environ |= {SECONDS: str(seconds), SIZE: str(case.baseline["size_bytes"]), "RAY_AUTH_MODE": "disabled"}
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))),
    }
    tuning.Trainer = SleepingTrainer  # type: ignore[misc,assignment]
    home = Path(tempfile.mkdtemp(dir=folder))
    file = home / "experiment.py"
    file.touch()
    run = RunFolder(home / "run")
    run.path.mkdir()
    experiment = replace(case.experiment, halving=None, budget=Budget(trials=trials), sampler="tpe")
    case = replace(case, experiment=experiment, job=replace(case.job, experiment=experiment, experiment_file=file, folder=run))
    search = Search(experiment, case.job.baseline.layers, case.baseline, study=run.study, prior=case.prior)
    uri, watch = default_uri(home), Stopwatch()
    check_reachable(uri)
    tracker = case.tracker(run, uri)
    listeners = Listeners(JsonlRecord(run), FrontFile(run, experiment, case.baseline), tracker, watch)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=-(-count // NODES))
        tracker.start()
        start = time.time()
        TuneDriver(address=cluster.address, concurrency=count).run(search, case.job, listeners)
        tracker.close(None)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    results = run.results()
    spans = [(result.started, result.started + result.compute) for result in results]
    ends = sorted(end for _, end in spans)
    begin, end = ends[count - 1], ends[-count]
    inside = sum(max(0.0, min(to, end) - max(since, begin)) for since, to in spans)
    cpu = watch.cpu[-count] - watch.cpu[count - 1]
    ended = len(ends) - 2 * count + 1
    print(f"\n{len(results)} trials of {seconds:g} s (half to one and a half) on {count} workers, {NODES} simulated nodes\n")
    print(f"  all workers had a trial after {max(sorted(since for since, _ in spans)[:count]) - start:.0f} s")
    print(f"  measured for {end - begin:.0f} s; {1e3 * cpu / ended:.0f} ms of the driver's CPU a trial")
    print_goal("cores that the driver takes", cpu / (end - begin), at_most=1)
    print_goal("share of the workers' time inside trials", inside / (count * (end - begin)), at_least=0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", default=["policies", "growth", "workers"])
    parser.add_argument("--workers", type=int, help="how many at once; by default as many as fit, 200 at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a trial takes, on average")
    chosen = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("SCALE_DIR", scratch))
        case = case_in(folder / "run")
        if "policies" in chosen.what:
            policies(case, folder)
        if "growth" in chosen.what:
            growth(case, folder / "recorded")
        if "workers" in chosen.what:
            fit = int(psutil.virtual_memory().available / 1e9 / WORKER_GB)
            workers(case, folder, chosen.workers or min(AT_ONCE, fit), chosen.seconds)


if __name__ == "__main__":
    main()
