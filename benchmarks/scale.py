"""Does a search hold 200 trials at once, and 10,000 in all?

    python benchmarks/scale.py                          (all three)
    python benchmarks/scale.py policies                 (a minute)
    python benchmarks/scale.py growth                   (a few more)
    python benchmarks/scale.py workers --workers 40     (needs psutil, and 0.12 GB of memory a worker)

With SCALE_DIR set to a folder, what is made on the way is kept there, and not made again.

**Policies.** A search that has told 100 trials is asked for 200 policies before any of them ends. Counted is how many times
its sampler had to be asked, for a policy that was run or runs already is not run again, and how far the policies lie
apart (the mean difference of their shares of channels). Then trials end and others begin, with 200 under way: what one of
them costs the driver.

**Growth.** What a trial costs the driver, and what memory the search takes, with up to 10,000 trials on record, all complete.
`benchmarks/overhead.py` has a guided space, halving and MLflow as well.

**Workers.** A search through Ray Tune on a cluster of simulated nodes (`ray.cluster_utils`), with record, study, front and
MLflow. Trials sleep in processes that load no torch (`benchmarks/sleeping.py`): where all workers share a machine with the
driver, nothing else would tell what the driver takes. As many workers as fit into the memory, 200 at most. Counted are,
from when each has had its first trial until there is no more work for one of them, the CPU time of the driver's process and
the share of the workers' time that is inside trials.
"""

import argparse
import gc
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import psutil
import torch
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from overhead import Case, case_in
from printing import print_goal, print_machine
from ray.cluster_utils import Cluster
from sleeping import SECONDS, SIZE, SleepingTrainer
from torch import nn

import autocompress.drivers.tune as tuning
from autocompress import Budget
from autocompress.drivers import timing
from autocompress.drivers.tune import TuneDriver
from autocompress.folder import RunFolder
from autocompress.listeners import FrontFile, Listeners
from autocompress.probe import probe
from autocompress.result import Status, TrialResult
from autocompress.sampling import sampled
from autocompress.search import Asked, Search
from autocompress.study import open_journal, open_study
from autocompress.trackers.jsonl import JsonlRecord
from autocompress.trackers.mlflow import check_reachable
from autocompress.trackers.mlflow_run import default_uri
from search_spaces import per_layer

AT_ONCE, TOLD, TURNS = 200, 100, 40
RECORDED, TIMED = (100, 1000, 10_000), 20
NODES, WORKER_GB = 2, 0.12


# --- policies


def wide(case: Case) -> Case:
    """The case with the layers of a network that nobody trains, of sixteen convolutions, and a space without a prior.

    Of the toy network most of what is proposed comes to what was run before.
    """
    steps: list[nn.Module] = []
    widths = (3, *(16,) * 5, *(32,) * 5, *(64,) * 6)
    for before, width in pairwise(widths):
        steps += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).eval()
    layers = probe(model, torch.zeros(8, 3, 16, 16))
    experiment = replace(case.experiment, space=per_layer.space, start=(), halving=None, limits=())
    job = replace(case.job, experiment=experiment, baseline=replace(case.job.baseline, layers=layers))
    return replace(case, experiment=experiment, job=job)


def search_in(case: Case, run: RunFolder, sampler: str | BaseSampler, results: Sequence[TrialResult] = ()) -> Search:
    experiment = replace(case.experiment, sampler=sampler)
    return Search(experiment, case.job.baseline.layers, case.baseline, study=run.study, recorded=results)


def made_up(asked: Asked, baseline: dict[str, float]) -> TrialResult:
    """Fewer channels and more zeros: smaller, quicker, and worse, with luck by the seed."""
    policy = asked.policy
    channels = float(np.mean([0.0, *policy.channel_sparsity.values()]))
    zeros = float(np.mean([0.0, *(layer.weight_sparsity for layer in policy.layers.values())]))
    left = (1 - channels) ** 2
    lost = 0.3 * channels**3 + 0.1 * zeros**4 + abs(float(np.random.default_rng(asked.seed).normal(0.0, 0.005)))
    costs = {"size_bytes": left * (1 - 0.8 * zeros), "latency_ms": left}
    metrics = {**baseline, **{name: share * baseline[name] for name, share in costs.items()}}
    return TrialResult(
        number=asked.number,
        policy=policy,
        status=Status.COMPLETE,
        metrics={**metrics, "accuracy": baseline["accuracy"] - lost},
        seed=asked.seed,
        started=1.8e9 + asked.number,
        seconds={"finetune": 60.0},
    )


def policies(case: Case, folder: Path) -> None:
    """Prints how different the policies of concurrent workers are, with TPE as it is, without its liar, and at random."""
    case = wide(case)
    no_liar = TPESampler(multivariate=True, seed=0, constant_liar=False)
    samplers: dict[str, str | BaseSampler] = {"TPE": "tpe", "TPE without the liar": no_liar, "random": "random"}
    print(f"\n{AT_ONCE} policies in flight, {TOLD} trials told before\n")
    for name, sampler in samplers.items():
        run = RunFolder(tempfile.mkdtemp(dir=folder))
        search = search_in(case, run, sampler)
        for _ in range(TOLD):
            search.tell(made_up(_asked(search), case.baseline))
        start = time.process_time()
        flying = [_asked(search) for _ in range(AT_ONCE)]
        ask = (time.process_time() - start) / AT_ONCE
        proposed = flying[-1].number - flying[0].number + 1
        distinct = len({asked.policy.key() for asked in flying})
        apart = _apart(flying)
        start = time.process_time()
        for asked in flying[:TURNS]:
            search.tell(made_up(asked, case.baseline))
            _asked(search)
        turn = (time.process_time() - start) / TURNS
        print(f"  {name:22s} {distinct} distinct, of {proposed} proposed; mean distance {apart:.3f}", flush=True)
        print(f"  {'':22s} CPU to ask {1e3 * ask:.1f} ms, to tell and ask with all of them in flight {1e3 * turn:.1f} ms")
        if name == "TPE":
            print_goal("distinct policies of those proposed", distinct / proposed, at_least=0.95)


def _apart(flying: list[Asked]) -> float:
    """The mean distance between two policies, each as the shares of its channels and of its zeros."""
    names = sorted({name for asked in flying for name in asked.policy.channel_sparsity})
    points = np.array([[asked.policy.channel_sparsity.get(name, 0.0) for name in names] for asked in flying])
    gaps = np.abs(points[:, None] - points[None]).mean(axis=-1)
    return float(gaps.sum() / (len(flying) * (len(flying) - 1)))


def _asked(search: Search) -> Asked:
    asked = search.ask()
    assert asked is not None, search.reason
    return asked


# --- growth


def growth(case: Case, folder: Path) -> None:
    """Prints what a trial costs the driver, and what memory a search takes, with so many on record."""
    case = wide(case)
    found = {size: _cost_at(case, recorded(case, RunFolder(folder / f"{size}"), size)) for size in RECORDED}
    print(f"\nwith so many on record, mean of {TIMED} trials: milliseconds of the driver, CPU (wall-clock)\n")
    print("  " + " " * 30 + "".join(f"{size:>18,}" for size in found))
    for part in ("ask", "record", "front file", "tell", "all"):
        print(f"  {part:30s}" + "".join(f"{1e3 * cpu[part]:9.1f} ({1e3 * wall[part]:6.1f})" for cpu, wall, _ in found.values()))
    for what in ("to open the search, CPU s", "memory of the search, MB"):
        print(f"  {what:30s}" + "".join(f"{figures[what]:>18.1f}" for _, _, figures in found.values()))
    few, many = found[RECORDED[0]][0]["all"], found[RECORDED[-1]][0]["all"]
    print_goal(f"CPU time a trial, {RECORDED[-1]:,} / {RECORDED[0]:,}", many / few, at_most=3)


def recorded(case: Case, run: RunFolder, size: int) -> RunFolder:
    """A record and a study of that size, all complete and sampled at random, as a search would have left them.

    Each trial is stored at once, where a search stores parameter after parameter: the same trials in a shorter journal.
    """
    if run.record.exists():
        return run
    run.path.mkdir(parents=True)
    experiment, layers = case.experiment, case.job.baseline.layers
    study = open_study(open_journal(run.study), experiment, run.study)
    asking = optuna.create_study(sampler=RandomSampler(seed=0))
    lines = []
    for number in range(size):
        trial = asking.ask()
        policy = sampled(experiment, layers, trial, None)
        result = made_up(Asked(number, policy, seed=number), case.baseline)
        values = [result.metrics[objective.metric] for objective in experiment.parsed_objectives]
        known = {"key": policy.key(), "policy": policy.to_json()}
        params, ranges = trial.params, trial.distributions
        done = create_trial(state=TrialState.COMPLETE, values=values, params=params, distributions=ranges, user_attrs=known)
        study.add_trial(done)
        lines.append(result.to_json() + "\n")
    run.record.write_text("".join(lines))
    return run


Seconds = dict[str, float]


def _cost_at(case: Case, run: RunFolder) -> tuple[Seconds, Seconds, dict[str, float]]:
    """CPU and wall-clock seconds a trial, by part, and what opening takes; `run` is left as it was."""
    cpu, wall = defaultdict[str, float](float), defaultdict[str, float](float)

    @contextmanager
    def on(part: str) -> Iterator[None]:
        before = time.thread_time(), time.perf_counter()
        yield
        for name in (part, "all"):
            cpu[name] += (time.thread_time() - before[0]) / TIMED
            wall[name] += (time.perf_counter() - before[1]) / TIMED

    with tempfile.TemporaryDirectory() as scratch:
        copy = RunFolder(Path(scratch) / "run")
        shutil.copytree(run.path, copy.path)
        gc.collect()
        memory, start = psutil.Process().memory_info().rss, time.thread_time()
        search = search_in(case, copy, "tpe", copy.results())
        live, record = FrontFile(copy, case.experiment, case.baseline), JsonlRecord(copy)
        opened = time.thread_time() - start
        search.tell(made_up(_asked(search), case.baseline))  # the first finds nothing in any cache
        for _ in range(TIMED):
            with on("ask"):
                asked = _asked(search)
            result = made_up(asked, case.baseline)
            with on("record"):
                record.finished(result)
            with on("front file"):
                live.finished(result)
            with on("tell"):
                search.tell(result)
        taken = (psutil.Process().memory_info().rss - memory) / 1e6
    return cpu, wall, {"to open the search, CPU s": opened, "memory of the search, MB": taken}


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
    # Where the workers of all nodes share a core or two, one takes minutes to load.
    setattr(timing, "_READY_SECONDS", 900.0)  # noqa: B010
    setattr(tuning, "Trainer", SleepingTrainer)  # noqa: B010  # mypy takes it for an import of ours
    home = Path(tempfile.mkdtemp(dir=folder))
    file = home / "experiment.py"
    file.touch()
    run = RunFolder(home / "run")
    run.path.mkdir()
    case = wide(case)
    experiment = replace(case.experiment, budget=Budget(trials=trials))
    case = replace(case, experiment=experiment, job=replace(case.job, experiment=experiment, experiment_file=file, folder=run))
    search = search_in(case, run, "tpe")
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
