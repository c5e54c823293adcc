"""What only trials in other processes can do: die, be timed elsewhere, and be silent about it."""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autocompress.baseline import Baseline, Data
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import ExperimentError, InputError
from autocompress.lane import Lane
from autocompress.result import Status
from tests.drivers.searching import Ear, experiment_file, search_of

pytestmark = pytest.mark.ray

_DEADLY = """
class Task(ToyTask):
    def loss(self, outputs, targets):
        once = HERE / "once"
        if len(outputs) == 17 or (len(outputs) == 18 and once.exists()):
            once.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(outputs, targets)

    def divergence(self, outputs, reference):
        if (HERE / "sensing").exists():
            (HERE / "sensing").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().divergence(outputs, reference)
"""


@pytest.mark.usefixtures("running_ray")
def test_a_killed_worker_is_replaced_once_and_a_trial_that_always_kills_it_has_failed(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    start = [{"steps": 8, "batch": batch} for batch in (16, 17, 18)]
    file = experiment_file(tmp_path, f"budget=Budget(trials=4), start={start}", task=_DEADLY)
    (tmp_path / "once").touch()
    search, job = search_of(file, toy_baseline, toy_data)
    ear = Ear(search)
    TuneDriver().run(search, job, ear)
    assert not (tmp_path / "once").exists()
    assert len(search.results) == 4
    status = {number: result.status for number, result in ear.results.items()}
    assert (status[0], status[1], status[2]) == (Status.COMPLETE, Status.FAILED, Status.COMPLETE)
    assert (ear.results[1].error or "").startswith("worker died: ")
    assert "\n" not in (ear.results[1].error or "")
    assert ear.results[1].rungs[0].step == 0
    for number, steps in ear.steps.items():
        assert ear.heard.count(("started", number)) == 1
        assert steps == sorted(set(steps))


@pytest.mark.usefixtures("running_ray")
def test_an_experiment_that_a_worker_cannot_load_fails_its_trials_with_the_reason(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    file = experiment_file(tmp_path, "budget=Budget(trials=1)")
    search, job = search_of(file, toy_baseline, toy_data)
    file.write_text("import a_module_that_is_only_here\n")
    TuneDriver().run(search, job, Ear(search))
    assert search.results[0].status is Status.FAILED
    assert "a_module_that_is_only_here" in (search.results[0].error or "")


_NOTING = """
with (HERE / "loaded").open("a") as file:
    file.write(f"{os.getpid()} ")

class Task(ToyTask):
    def loss(self, outputs, targets):
        begin = time.monotonic()
        time.sleep(0.02)
        with (HERE / "trained").open("a") as file:
            file.write(f"{begin} {time.monotonic()}\\n")
        return super().loss(outputs, targets)
"""


@pytest.mark.usefixtures("running_ray")
def test_a_worker_runs_many_trials_and_none_trains_while_something_is_timed(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    start = [{"steps": 12, "bits": bits} for bits in (2, 4, 6, 8)]
    file = experiment_file(tmp_path, f"budget=Budget(trials=4), start={start}", task=_NOTING)
    search, job = search_of(file, toy_baseline, toy_data)
    with _watching_the_lane() as timed:
        TuneDriver().run(search, job, Ear(search))
    loaded = (tmp_path / "loaded").read_text().split()
    assert len(set(loaded)) == len(loaded) <= 1 + (os.cpu_count() or 1), "once here, once in each worker"
    trained = [tuple(map(float, line.split())) for line in (tmp_path / "trained").read_text().splitlines()]
    assert len(trained) == 4 * 12
    assert len(timed) > 10
    overlaps = [(begin, moment, end) for begin, end in trained for moment in timed if begin <= moment <= end]
    assert overlaps == []


@contextmanager
def _watching_the_lane() -> Iterator[list[float]]:
    """Collects moments at which someone on this machine was timing."""
    Lane()
    moments: list[float] = []
    over = threading.Event()

    def watch() -> None:
        with (Path(tempfile.gettempdir()) / f"autocompress-lane-{os.getuid()}" / "road").open() as road:
            while not over.wait(0.002):
                before = time.monotonic()
                try:
                    fcntl.flock(road, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    fcntl.flock(road, fcntl.LOCK_UN)
                except BlockingIOError:
                    moments.append(before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield moments
    finally:
        over.set()
        watcher.join()


@pytest.mark.usefixtures("running_ray")
def test_a_trial_too_large_for_every_node_is_refused_at_once(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    search, job = search_of(experiment_file(tmp_path, f"cpus_per_trial={cores + 1}"), toy_baseline, toy_data)
    with pytest.raises(ExperimentError, match=rf"no node has room for a trial of {cores + 1} CPUs"):
        TuneDriver().run(search, job, Ear(search))


def test_a_concurrency_of_none_is_refused() -> None:
    with pytest.raises(InputError, match="concurrency must be at least 1, given 0"):
        TuneDriver(concurrency=0)


_SEARCH = """
import os
import sys
from pathlib import Path
from autocompress.baseline import load_data, make_baseline
from autocompress.drivers.tune import TuneDriver
from autocompress.option import options
from autocompress.target import Target
from autocompress.testing import ToyTask
from tests.drivers.searching import Ear, search_of

file, task = Path(sys.argv[1]), ToyTask()
search, job = search_of(file, make_baseline(task, Target(), file.parent / "baseline", seed=0), load_data(task))
before = dict(os.environ)
ear, driver = Ear(search), TuneDriver(concurrency=1)
with driver.session(job):
    (file.parent / "sensing").touch()
    wanted = options(job.baseline.layers, job.experiment.target.menu)[:4]
    assert len(list(driver.divergences(wanted, job))) == 4
    given_up = driver.divergences(wanted, job)
    next(given_up)
    given_up.close()
    driver.run(search, job, ear)
assert [result.status for result in search.results] == ["failed", "complete"], search.results
assert [event for event in ear.heard if event[0] != "rung"] == [
    ("started", 0), ("finished", 0), ("started", 1), ("finished", 1)
], ear.heard
assert os.environ == before, dict(os.environ.items() ^ before.items())
"""


def test_ray_says_nothing_on_the_terminal_and_leaves_nothing_behind(tmp_path: Path) -> None:
    start = [{"steps": 8, "batch": 17}, {"steps": 0}]
    file = experiment_file(tmp_path, f"budget=Budget(trials=2), start={start}", task=_DEADLY)
    home = tmp_path / "home"
    home.mkdir()
    storage = set(Path(tempfile.gettempdir()).glob("autocompress-tune-*"))
    done = subprocess.run(
        [sys.executable, "-c", _SEARCH, str(file)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "HOME": str(home)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "A worker died" in (tmp_path / "run" / "autocompress.log").read_text()
    assert set(Path(tempfile.gettempdir()).glob("autocompress-tune-*")) <= storage
    assert {path.name for path in home.iterdir()} <= {".cache"}
