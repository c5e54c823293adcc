"""Does a search whose processes die all the time lose a trial, or count one twice?

    python benchmarks/chaos.py                            (needs psutil; the longer, the busier the machine)
    python benchmarks/chaos.py --trials 30 --folder runs/chaos

A search of a toy task on Ray, logged to an MLflow server, at random and with a fixed seed. About every five seconds, from the
first to the last, something drawn at random of what can happen just then happens to it:

- a worker that trains is killed, or frozen for some seconds;
- a process beside them is killed: the one that times files, or the one that stands for the run folder;
- the part of Ray that starts processes is killed: the search then ends by itself, and is resumed;
- the search is killed or told to end, and resumed; in one of two cases its last line on record is torn as if the disk had not
  got it whole. While it starts, too, but not twice in a row, or it would never get to a trial;
- the MLflow server is killed and comes back later, or is frozen for some seconds.

At the end the record, the study and MLflow are counted. The same search is then made without faults: a trial is a function
of its number, so those that finished in both have the same size and score, and the same front.
"""

import argparse
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
from mlflow import MlflowClient
from printing import print_goal, print_machine

from autocompress.folder import RunFolder
from autocompress.front import non_dominated
from autocompress.objective import Objective
from autocompress.result import Status, TrialResult
from autocompress.study import STUDY_NAME, open_journal
from autocompress.trackers.mlflow_run import MlflowRun

# How often each is drawn, beside the others that can happen at the time.
WEIGHTS = {
    "worker killed": 5,
    "worker frozen": 3,
    "process beside them killed": 2,
    "Ray killed": 1,
    "search killed": 2,
    "search told to end": 1,
    "MLflow killed": 2,
    "MLflow frozen": 2,
}
# How the processes of a search are called: those of its actors, and Ray's own that starts them.
# (Tune runs a trainer in a class of its own.)
_TRAINER, _BESIDE, _RAYLET = ("ray::Trainer", "ray::ResourceTrainable"), ("ray::LatencyLane", "ray::Shelf"), "raylet"
EXPERIMENT = """\
from autocompress import Budget, Experiment, Finetune, LayerPolicy, Policy
from autocompress.testing import ToyTask


def space(trial, layers, target):
    shares = {group.name: trial.suggest_float(group.name, 0.0, 0.75) for group in layers.groups}
    bits = {layer.name: trial.suggest_int(f"{layer.name}/bits", 2, 8) for layer in layers}
    return Policy(
        channel_sparsity=shares,
        layers={name: LayerPolicy(weight_bits=value) for name, value in bits.items()},
        finetune=Finetune(steps=8),
    )


experiment = Experiment(task=ToyTask(), space=space, budget=Budget(trials=TRIALS), sampler="random", seed=7, retries=1000)
"""


class Server:
    """An MLflow server on this machine that can be killed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._home}/mlflow.db", "--artifacts-destination", str(self._home)]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self) -> None:
        """Returns when it answers: it takes ten seconds to start."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.5)
        raise SystemExit(f"the MLflow server does not come up: see {self._home / 'server.log'}")

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between faults, on average")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="autocompress-chaos-") as scratch:
        home = (chosen.folder or Path(scratch)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        file = home / "chaos_toy.py"
        file.write_text(EXPERIMENT.replace("TRIALS", str(chosen.trials)))
        server, run = Server(home), home / "run"
        server.start()
        try:
            chaos = Chaos(run, server, chosen.concurrency, random.Random(chosen.seed))
            seconds = chaos.search(_search(file, run, server.uri, chosen.concurrency), every=chosen.every)
            server.wait()
            _call(home / "sync.txt", "sync", run)
            _account(run, server.uri, chosen.trials, chaos.faults, seconds)
        finally:
            server.kill()
        calm = home / "calm"
        _call(home / "calm.txt", *_search(file, calm, f"sqlite:///{home}/calm.db", chosen.concurrency))
        _compare(RunFolder(run).results(), RunFolder(calm).results())


class Chaos:
    """A search to which things happen until it ends by itself; `faults` says how often what did."""

    def __init__(self, run: Path, server: Server, concurrency: int, draw: random.Random) -> None:
        self.faults: Counter[str] = Counter()
        self._run, self._server, self._draw = run, server, draw
        self._log = run.parent / "said.txt"
        self._again = ["resume", str(run), "--concurrency", str(concurrency)]
        self._later: list[tuple[float, Callable[[], None]]] = []

    def search(self, arguments: Sequence[str], *, every: float) -> float:
        """Searches to the end, with a fault about `every` so many seconds. Says how long that took."""
        began = time.monotonic()
        self._begin(arguments, spared=True)
        while True:
            until = time.monotonic() + self._draw.expovariate(1 / every)
            while self._process.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
                self._bring_back(time.monotonic())
            code = self._process.poll()
            if code == 0:
                self._bring_back(math.inf)
                return time.monotonic() - began
            if code is None:
                self._harm()
            elif self._is_hit:
                if self._torn:
                    self._tear()
                self._begin(self._again, spared=self._is_early)
            else:
                raise SystemExit(f"the search ended by itself with exit code {code}: see {self._log}")

    def _begin(self, arguments: Sequence[str], *, spared: bool) -> None:
        """`spared`: nothing ends it before it has got on."""
        self._before, self._is_spared = len(_record(self._run)), spared
        self._is_hit = self._is_early = self._torn = False
        self._process = _start(self._log, *arguments)

    def _harm(self) -> None:
        possible = self._possible()
        if possible:
            (fault,) = self._draw.choices(list(possible), [WEIGHTS[name] for name in possible])
            with suppress(psutil.NoSuchProcess):
                possible[fault]()
                self.faults[fault] += 1
                print(f"  {len(_record(self._run)):4d} trials: {fault}", flush=True)

    def _possible(self) -> dict[str, Callable[[], None]]:
        """What can happen now, by name."""
        found: dict[str, Callable[[], None]] = {}
        children = _children(self._process.pid)
        trainers = [child for title, child in children if title.startswith(_TRAINER)]
        beside = [child for title, child in children if title.startswith(_BESIDE)]
        raylets = [child for title, child in children if title.endswith(_RAYLET)]
        if trainers:
            found["worker killed"] = lambda: self._draw.choice(trainers).kill()
            found["worker frozen"] = lambda: self._freeze(self._draw.choice(trainers))
        if beside:
            found["process beside them killed"] = lambda: self._draw.choice(beside).kill()
        gets_on = len(_record(self._run)) > self._before
        if (gets_on or not self._is_spared) and not self._is_hit:
            found["search killed"] = lambda: self._end(self._process.kill, early=not gets_on, torn=self._draw.random() < 0.5)
            found["search told to end"] = lambda: self._end(self._process.terminate, early=not gets_on)
            if raylets:
                found["Ray killed"] = lambda: self._end(raylets[0].kill, early=not gets_on)
        if self._server.is_up:
            found["MLflow killed"] = self._kill_server
            found["MLflow frozen"] = self._freeze_server
        return found

    def _end(self, how: Callable[[], None], *, early: bool, torn: bool = False) -> None:
        how()
        self._is_hit, self._is_early, self._torn = True, early, torn

    def _tear(self) -> None:
        """Leaves half of one more line, as if the disk had not got it whole."""
        if lines := _record(self._run):
            with (self._run / "trials.jsonl").open("ab") as file:
                file.write(lines[-1][: len(lines[-1]) // 2])
            self.faults["record torn"] += 1

    def _freeze(self, process: psutil.Process) -> None:
        process.suspend()
        self._after(1, 8, process.resume)

    def _kill_server(self) -> None:
        self._server.kill()
        self._after(2, 20, self._server.start)

    def _freeze_server(self) -> None:
        self._server.signal(signal.SIGSTOP)
        self._after(1, 8, lambda: self._server.signal(signal.SIGCONT))

    def _after(self, least: float, most: float, back: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + self._draw.uniform(least, most), back))

    def _bring_back(self, now: float) -> None:
        due = [back for when, back in self._later if when <= now]
        self._later = [(when, back) for when, back in self._later if when > now]
        for back in due:
            with suppress(psutil.NoSuchProcess):
                back()


def _children(pid: int) -> list[tuple[str, psutil.Process]]:
    """The processes of the search, and what they are called."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                found += [(title, child) for title in child.cmdline()[:1]]
    return found


def _search(file: Path, run: Path, uri: str, concurrency: int) -> list[str]:
    return ["search", str(file), "--run", str(run), "--tracking-uri", uri, "--concurrency", str(concurrency)]


def _start(log: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as said:
        return subprocess.Popen([sys.executable, "-m", "autocompress", *map(str, arguments)], stdout=said, stderr=said)


def _call(log: Path, *arguments: str | Path) -> None:
    if code := _start(log, *arguments).wait():
        raise SystemExit(f"autocompress {arguments[0]} ended with exit code {code}: see {log}")


def _record(run: Path) -> list[bytes]:
    file = run / "trials.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def _account(run: Path, uri: str, trials: int, faults: Counter[str], seconds: float) -> None:
    folder = RunFolder(run)
    numbers = Counter(result.number for result in folder.results())
    stored = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(folder.study)).get_trials(deepcopy=False)
    own = [trial for trial in stored if "duplicate_of" not in trial.user_attrs]
    noted, client = MlflowRun.from_json(folder.mlflow_json.read_bytes()), MlflowClient(uri)
    query = f"tags.`mlflow.parentRunId` = '{noted.parent_run_id}'"
    nested = client.search_runs([str(noted.experiment_id)], query, max_results=10_000)
    logged = Counter(int(found.data.tags["autocompress.trial"]) for found in nested)
    listed = ", ".join(f"{times} x {what}" for what, times in faults.most_common())
    print(f"{faults.total()} faults in {seconds:.0f} s, one in {seconds / max(faults.total(), 1):.1f} s: {listed}")
    print(f"by status: {dict(Counter(str(result.status) for result in folder.results()))}")
    print_goal("trials on record", len(numbers), at_least=trials)
    print_goal("twice on record", _twice(numbers), at_most=0)
    print_goal("in the study, not ended", sum(not trial.state.is_finished() for trial in own), at_most=0)
    print_goal("in the study or on record alone", len({trial.number for trial in own} ^ set(numbers)), at_most=0)
    print_goal("in MLflow or on record alone", len(set(logged) ^ set(numbers)), at_most=0)
    print_goal("twice in MLflow", _twice(logged), at_most=0)
    print_goal("in MLflow, not ended", sum(found.info.status == "RUNNING" for found in nested), at_most=0)


def _twice(numbers: Counter[int]) -> int:
    return sum(count > 1 for count in numbers.values())


def _compare(ours: list[TrialResult], theirs: list[TrialResult]) -> None:
    """The trials that both searches finished: latencies are measured anew, all else is the same."""
    chaos, calm = ({one.number: one for one in results if one.status is Status.COMPLETE} for results in (ours, theirs))
    both = sorted(chaos.keys() & calm.keys())
    kept = ("size_bytes", "accuracy")
    other = [n for n in both if any(chaos[n].metrics[name] != calm[n].metrics[name] for name in kept)]
    objectives = [Objective.of(name) for name in kept]
    fronts = [
        sorted(
            (metrics["size_bytes"], metrics["accuracy"])
            for metrics in non_dominated([results[number].metrics for number in both], objectives)
        )
        for results in (chaos, calm)
    ]
    print(f"{len(both)} trials finished with faults and without, {len(fronts[0])} of them on the front of size and accuracy")
    print_goal("of another size or accuracy", len(other), at_most=0)
    print_goal("on one of the fronts alone", len(set(fronts[0]) ^ set(fronts[1])), at_most=0)


if __name__ == "__main__":
    main()
