"""Does a search whose processes die all the time lose a trial, or count one twice?

    python benchmarks/chaos.py                            (needs psutil; the longer, the busier the machine)
    python benchmarks/chaos.py --trials 30 --folder runs/chaos

A search of a toy task on Ray, logged to an MLflow server, at random and with a fixed seed. About every five seconds something
drawn at random happens to it: a worker is killed, the search is killed or told to end and resumed (in one of two cases its last
line on record is torn as if the disk had not got it whole), or the MLflow server is killed and comes back later. A search that
was resumed is left alone until a trial has finished, or it would never get to one on a slow machine. At the end the
record, the study and MLflow are counted. The same search is then made without faults: a trial is a function of its number, so
those that finished in both have the same size and score, and the same front.
"""

import argparse
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

FAULTS = {"worker killed": 5, "search killed": 2, "search told to end": 1, "MLflow killed": 2}
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
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


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
            draw = random.Random(chosen.seed)
            faults = _with_faults(file, run, server, chosen.concurrency, chosen.every, draw)
            if not server.is_up:
                server.start()
            server.wait()
            _call(home / "sync.txt", "sync", run)
            _account(run, server.uri, chosen.trials, faults)
        finally:
            server.kill()
        calm = home / "calm"
        _call(home / "calm.txt", *_search(file, calm, f"sqlite:///{home}/calm.db", chosen.concurrency))
        _compare(RunFolder(run).results(), RunFolder(calm).results())


def _with_faults(file: Path, run: Path, server: Server, concurrency: int, every: float, draw: random.Random) -> Counter[str]:
    """Searches until the search ends by itself. Says how often what happened."""
    faults: Counter[str] = Counter()
    log = run.parent / "said.txt"
    search, back, before = _start(log, *_search(file, run, server.uri, concurrency)), 0.0, 0
    while True:
        until = time.monotonic() + draw.expovariate(1 / every)
        while search.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if not server.is_up and time.monotonic() > back:
            server.start()
        if search.poll() == 0:
            return faults
        if search.poll() is not None:
            raise SystemExit(f"the search ended by itself with exit code {search.returncode}: see {log}")
        fault = draw.choices(list(FAULTS), list(FAULTS.values()))[0]
        if fault == "worker killed":
            workers = [process for process in psutil.Process(search.pid).children(recursive=True) if _trains(process)]
            if not workers:
                continue
            draw.choice(workers).kill()
        elif fault == "MLflow killed":
            if not server.is_up:
                continue
            server.kill()
            back = time.monotonic() + draw.uniform(2, 20)
        else:
            if len(_record(run)) == before:
                continue
            search.send_signal(signal.SIGKILL if fault == "search killed" else signal.SIGTERM)
            search.wait()
            if fault == "search killed" and draw.random() < 0.5:
                _tear(run / "trials.jsonl")
                faults["record torn"] += 1
            resumed = ["resume", str(run), "--concurrency", str(concurrency)]
            search, before = _start(log, *resumed), len(_record(run))
        faults[fault] += 1
        print(f"  {len(_record(run)):4d} trials: {fault}", flush=True)


def _search(file: Path, run: Path, uri: str, concurrency: int) -> list[str]:
    return ["search", str(file), "--run", str(run), "--tracking-uri", uri, "--concurrency", str(concurrency)]


def _start(log: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as said:
        return subprocess.Popen([sys.executable, "-m", "autocompress", *map(str, arguments)], stdout=said, stderr=said)


def _call(log: Path, *arguments: str | Path) -> None:
    if code := _start(log, *arguments).wait():
        raise SystemExit(f"autocompress {arguments[0]} ended with exit code {code}: see {log}")


def _trains(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("ray::Trainer") for word in process.cmdline()[:1])
    except psutil.Error:
        return False


def _record(run: Path) -> list[bytes]:
    file = run / "trials.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def _tear(record: Path) -> None:
    """As if half of one more line were on the disk."""
    if lines := _record(record.parent):
        with record.open("ab") as file:
            file.write(lines[-1][: len(lines[-1]) // 2])


def _account(run: Path, uri: str, trials: int, faults: Counter[str]) -> None:
    folder = RunFolder(run)
    numbers = Counter(result.number for result in folder.results())
    stored = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(folder.study)).get_trials(deepcopy=False)
    own = [trial for trial in stored if "duplicate_of" not in trial.user_attrs]
    noted, client = MlflowRun.from_json(folder.mlflow_json.read_bytes()), MlflowClient(uri)
    query = f"tags.`mlflow.parentRunId` = '{noted.parent_run_id}'"
    nested = client.search_runs([str(noted.experiment_id)], query, max_results=10_000)
    logged = Counter(int(found.data.tags["autocompress.trial"]) for found in nested)
    print(f"{sum(faults.values())} faults: {', '.join(f'{count} x {what}' for what, count in faults.most_common())}")
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
