"""kill -9 of the search: at moments drawn at random, and at those that matter most."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.run import resume
from autocompress.search import Search
from autocompress.study import STUDY_NAME
from autocompress.trackers.jsonl import JsonlRecord
from tests.faults.processes import command, ended, finished, in_mlflow, recorded, running, wait_until
from tests.toy import copy_run, write_experiment

TRIALS = 14


def in_study(folder: RunFolder) -> dict[int, str]:
    """The states of the trials in the study that stand for a trial of their own, by number."""
    study = optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(folder.study))))
    return {trial.number: trial.state.name for trial in study.trials if "duplicate_of" not in trial.user_attrs}


def check_whole(folder: RunFolder, trials: int) -> None:
    """Each trial once, in the record, the study and MLflow, and ended in all of them."""
    results = folder.results()
    numbers = sorted(result.number for result in results)
    assert len(numbers) == len(set(numbers)) == trials
    assert len({result.policy.key() for result in results}) == trials, "no policy was run twice"
    assert {result.status for result in results} == {"complete"}
    for result in results:
        steps = [rung.step for rung in result.rungs]
        assert steps == sorted(set(steps)) == [0, 4, 8]
        assert (folder.path / str(result.model)).stat().st_size == result.metrics["size_bytes"]
    assert in_study(folder) == dict.fromkeys(numbers, "COMPLETE")
    parent, nested = in_mlflow(folder.path)
    assert parent == "FINISHED"
    assert nested == {str(number): "FINISHED" for number in numbers}


def go_on(folder: Path) -> None:
    """`autocompress resume FOLDER` with the local driver."""
    command(folder.parent / "said", "resume", folder, "--driver", "local", "--trials", str(TRIALS))


def test_killed_at_ten_random_moments_a_search_is_whole(toy_run: Path, tmp_path: Path, tracking_uri: str) -> None:
    folder = RunFolder(tmp_path / "run")
    file = write_experiment(tmp_path, trials=TRIALS)
    # A trial in which the process dies is suspect; these are not to blame.
    file.write_text(file.read_text().replace('sampler="random"', 'sampler="random", retries=10'))
    copy_run(toy_run, folder.path)
    for path in (folder.record, folder.study, folder.front_json, folder.mlflow_json):
        path.unlink()  # nothing but the uncompressed model is left
    note = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps({**note, "experiment": str(file), "tracking_uri": tracking_uri}))
    draw = random.Random(7)
    before = b""
    for kill in range(10):
        with running(go_on, folder.path) as process:
            if kill % 3:  # the others die at any moment, also before they have asked for anything
                wait_until(study_grows(folder), process)
            # At most one trial further, so that ten sessions are killed before the search is over.
            _wait(draw.uniform(0.0, 3.0), folder, process)
            assert process.is_alive(), f"it ended before kill {kill}: {(tmp_path / 'said').read_text()[-500:]}"
            process.kill()
            assert ended(process) == -signal.SIGKILL
        whole = recorded(folder.path)
        assert whole.startswith(before), "what was recorded stays"
        before = whole
    resume(folder.path, driver=LocalDriver(), trials=TRIALS)
    assert folder.record.read_bytes().startswith(before)
    check_whole(folder, TRIALS)


def study_grows(folder: RunFolder) -> Callable[[], bool]:
    """Whether it has grown since this was called."""
    file = folder.study

    def size() -> int:
        return file.stat().st_size if file.exists() else 0

    before = size()
    return lambda: size() > before


def _wait(seconds: float, folder: RunFolder, process: ForkServerProcess) -> None:
    count, until = finished(folder.path), time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until or finished(folder.path) > count, process)


MOMENTS = {
    "before the record": (JsonlRecord, "finished", "before"),
    "between the record and the study": (Search, "tell", "before"),
    "in the middle of telling the study": (Search, "_close", "before"),
    "between a question and its trial": (JsonlRecord, "started", "before"),
    "after the study was told": (Search, "tell", "after"),
}


def _dying(moment: str, folder: Path) -> None:
    """Goes on with the search, until the second time it comes to the moment."""
    owner, name, when = MOMENTS[moment]
    whole, calls = getattr(owner, name), Counter[str]()

    def method(*arguments: Any) -> Any:
        calls[name] += 1
        if when == "before" and calls[name] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = whole(*arguments)
        if when == "after" and calls[name] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, method)
    command(folder.parent / "said", "resume", folder, "--driver", "local", "--trials", "7")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_where_a_result_changes_hands(toy_run: Path, tmp_path: Path, moment: str) -> None:
    folder = RunFolder(tmp_path / "run")
    copy_run(toy_run, folder.path)
    with running(_dying, moment, folder.path) as process:
        assert ended(process) == -signal.SIGKILL
    before = folder.record.read_bytes()
    resume(folder.path, driver=LocalDriver(), trials=6)
    assert folder.record.read_bytes().startswith(before)
    check_whole(folder, 6)
