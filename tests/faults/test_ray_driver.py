"""The search on Ray killed at moments drawn at random, and told to end: the run stays whole, and Ray goes too."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.run import resume
from tests.faults.processes import command, ended, finished, in_mlflow, numbers, recorded, running, wait_until
from tests.faults.test_killed import check_whole, study_grows
from tests.toy import copy_run, write_experiment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

TRIALS = 12
# Some of Ray's processes look for their parents every now and then only.
_GONE_SECONDS = 90.0


@pytest.fixture
def folder(toy_run: Path, tmp_path: Path, tracking_uri: str) -> RunFolder:
    """A run of which nothing is there but the uncompressed model."""
    folder = RunFolder(copy_run(toy_run, tmp_path / "run"))
    for path in (folder.record, folder.study, folder.front_json, folder.mlflow_json):
        path.unlink()
    file = write_experiment(tmp_path, trials=TRIALS)
    note = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps({**note, "experiment": str(file), "tracking_uri": tracking_uri}))
    return folder


def go_on(folder: Path) -> None:
    """`autocompress resume FOLDER` on Ray."""
    command(folder.parent / "said", "resume", folder, "--driver", "tune", "--concurrency", "2", "--trials", str(TRIALS))


def children(pid: int | None) -> list[psutil.Process]:
    """All processes that it has started, and those that they have."""
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


def trains(pid: int | None) -> bool:
    """Whether a worker is at it."""
    for process in children(pid):
        try:
            if any("ray::Trainer" in word for word in process.cmdline()[:1]):
                return True
        except psutil.Error:
            continue
    return False


def record_grows(folder: RunFolder) -> Callable[[], bool]:
    """Whether it has grown since this was called."""
    before = finished(folder.path)
    return lambda: finished(folder.path) > before


def test_killed_at_random_moments_a_search_on_ray_is_whole(folder: RunFolder) -> None:
    draw, before = random.Random(11), b""
    left: list[psutil.Process] = []
    for kill in range(3):
        with running(go_on, folder.path) as process:
            moments: tuple[Callable[[], bool], ...] = partial(trains, process.pid), study_grows(folder), record_grows(folder)
            wait_until(moments[kill], process)
            time.sleep(draw.uniform(0.0, 0.5))
            assert process.is_alive(), f"it ended before kill {kill}: {(folder.path.parent / 'said').read_text()[-500:]}"
            left += children(process.pid)
            process.kill()
            assert ended(process) == -signal.SIGKILL
        whole = recorded(folder.path)
        assert whole.startswith(before), "what was recorded stays"
        before = whole
    resume(folder.path, driver=LocalDriver(), trials=TRIALS)
    assert folder.record.read_bytes().startswith(before)
    check_whole(folder, TRIALS)
    assert len(left) > 3 * 2, "Ray had processes of its own"
    assert not psutil.wait_procs(left, timeout=_GONE_SECONDS)[1]


def test_sigterm_ends_a_search_on_ray_with_all_it_has(folder: RunFolder) -> None:
    with running(go_on, folder.path) as process:
        wait_until(lambda: finished(folder.path) >= 2, process)
        assert process.pid is not None
        left = children(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        code = ended(process)
    said = (folder.path.parent / "said").read_text()
    assert code == 143, said
    assert f"told to end by SIGTERM; what has finished is kept: `autocompress resume {folder.path}` goes on" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 20, "Ray keeps its thoughts to the log"
    before = folder.results()
    assert {result.status for result in before} == {"complete"}, "no trial has failed because the machine was shut down"
    parent, nested = in_mlflow(folder.path)
    assert (parent, sorted(map(int, nested))) == ("KILLED", sorted(result.number for result in before))
    assert not psutil.wait_procs(left, timeout=_GONE_SECONDS)[1]
    resume(folder.path, driver=LocalDriver(), trials=TRIALS)
    assert folder.results()[: len(before)] == before
    assert len(set(numbers(folder.path))) == TRIALS
    check_whole(folder, TRIALS)


def test_processes_beside_the_workers_are_begun_again(folder: RunFolder) -> None:
    """Without the one that stands for the run folder every trial after it had failed."""
    with running(go_on, folder.path) as process:
        wait_until(record_grows(folder), process)
        beside = [child for child in children(process.pid) if child.cmdline()[0].startswith(("ray::Shelf", "ray::LatencyLane"))]
        assert len(beside) == 2
        for child in beside:
            child.kill()
        assert ended(process) == 0, (folder.path.parent / "said").read_text()[-500:]
    check_whole(folder, TRIALS)
