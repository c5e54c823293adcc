"""Searches that are told to end, interrupted, or begun twice: the state stays whole."""

import itertools
import os
import signal
import time
from pathlib import Path

from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.opened import open_run
from autocompress.run import resume
from tests.faults.processes import begin, command, ended, finished, in_mlflow, numbers, running, wait_until
from tests.toy import write_experiment


def search(home: Path, driver: str, tracking_uri: str, *, trials: int = 200) -> tuple[object, ...]:
    file = write_experiment(home, trials=trials)
    where = ("--run", home / "run", "--driver", driver, "--tracking-uri", tracking_uri)
    return command, home / "said", "search", file, *where


def test_sigterm_ends_a_search_with_all_it_has(tmp_path: Path, tracking_uri: str) -> None:
    with running(*search(tmp_path, "local", tracking_uri)) as process:  # type: ignore[arg-type]
        wait_until(lambda: finished(tmp_path / "run") >= 2, process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        code = ended(process)
    said = (tmp_path / "said").read_text()
    assert code == 143, said
    assert f"told to end by SIGTERM; what has finished is kept: `autocompress resume {tmp_path / 'run'}` goes on" in said
    assert "Traceback" not in said
    before = RunFolder(tmp_path / "run").results()
    assert {result.status for result in before} == {"complete"}, "no trial has failed because the machine was shut down"
    parent, nested = in_mlflow(tmp_path / "run")
    assert (parent, sorted(map(int, nested))) == ("KILLED", sorted(result.number for result in before))
    resume(tmp_path / "run", driver=LocalDriver(), trials=len(before) + 1)
    after = RunFolder(tmp_path / "run").results()
    assert after[:-1] == before
    assert in_mlflow(tmp_path / "run")[0] == "FINISHED"


def test_sigterm_before_the_first_trial_leaves_a_run_to_resume(tmp_path: Path, tracking_uri: str) -> None:
    with running(*search(tmp_path, "local", tracking_uri, trials=1)) as process:  # type: ignore[arg-type]
        wait_until((tmp_path / "run/run.json").exists, process)
        process.terminate()
        assert ended(process) == 143
    resume(tmp_path / "run", driver=LocalDriver())
    assert len(numbers(tmp_path / "run")) == 1


def test_ctrl_c_twice_leaves_at_once_and_whole(tmp_path: Path, tracking_uri: str) -> None:
    with running(*search(tmp_path, "local", tracking_uri)) as process:  # type: ignore[arg-type]
        wait_until(lambda: finished(tmp_path / "run") >= 2, process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        wait_until(lambda: "the search has ended: interrupted" in (tmp_path / "said").read_text(), process)
        os.kill(process.pid, signal.SIGINT)
        code = ended(process)
    said = (tmp_path / "said").read_text()
    assert code == 130, said
    assert said.rstrip().endswith("interrupted")
    assert "Traceback" not in said
    count = finished(tmp_path / "run")
    resume(tmp_path / "run", driver=LocalDriver(), trials=count + 1)
    assert len(set(numbers(tmp_path / "run"))) == finished(tmp_path / "run") == count + 1
    parent, nested = in_mlflow(tmp_path / "run")
    assert (parent, set(nested.values()), len(nested)) == ("FINISHED", {"FINISHED"}, count + 1)


def _with_a_jumping_clock(log: Path, *arguments: str | Path) -> None:
    """The command, while the clock is set a day back or forth every time that somebody looks at it."""
    right, days = time.time, itertools.cycle((0, 1, -1))
    time.time = lambda: right() + 86_400 * next(days)
    command(log, *arguments)


def test_a_clock_that_jumps_changes_nothing_but_dates(tmp_path: Path, tracking_uri: str) -> None:
    _, *arguments = search(tmp_path, "local", tracking_uri, trials=3)
    with running(_with_a_jumping_clock, *arguments) as process:
        assert ended(process) == 0, (tmp_path / "said").read_text()
    results = RunFolder(tmp_path / "run").results()
    assert [result.status for result in results] == ["complete"] * 3
    assert all(0 < result.compute < 3600 for result in results)
    assert in_mlflow(tmp_path / "run") == ("FINISHED", {str(number): "FINISHED" for number in range(3)})


def _begin_once_both_are_there(log: Path, home: Path, *arguments: str | Path) -> None:
    (home / f"here-{os.getpid()}").touch()
    while len(list(home.glob("here-*"))) < 2:
        time.sleep(0.001)
    command(log, *arguments)


def test_of_two_searches_begun_in_one_folder_one_is_refused(tmp_path: Path, tracking_uri: str) -> None:
    files = [write_experiment(tmp_path / name, trials=1) for name in ("one", "other")]
    for file in files:
        file.write_text(f"# {file.parent.name}\n{file.read_text()}")
    where = ("--run", tmp_path / "run", "--driver", "local", "--tracking-uri", tracking_uri)
    arguments = [(file.parent / "said", tmp_path, "search", file, *where) for file in files]
    processes = [begin(_begin_once_both_are_there, *given) for given in arguments]
    codes = [ended(process) for process in processes]
    assert sorted(codes) == [0, 2]
    won, lost = files[codes.index(0)], files[codes.index(2)]
    said = (lost.parent / "said").read_text()
    assert "another process is at work on" in said or "already holds a run" in said
    assert len(said.splitlines()) == 1
    assert open_run(tmp_path / "run").note.experiment == str(won)
    assert (tmp_path / "run/experiment.py").read_text() == won.read_text(), "the other left it alone"
    assert len(numbers(tmp_path / "run")) == 1
