"""`autocompress status`, and what a search writes down for it."""

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autocompress import session_file
from autocompress.cli.status import standing_of
from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.listeners import Silent
from autocompress.opened import Options
from autocompress.result import Rung, TrialResult
from autocompress.run import run_search
from autocompress.search import Asked
from autocompress.session import Running, Session
from tests.made import BASELINE, made_folder, made_front, made_results
from tests.toy import call, write_experiment

Capture = pytest.CaptureFixture[str]


class Onlooker(Silent):
    """Looks at the run folder whenever something happens, as another process would."""

    def __init__(self, folder: Path) -> None:
        self._folder = RunFolder(folder)
        self.seen: dict[str, dict[str, Any]] = {}

    def _look(self, when: str) -> None:
        self.seen[when] = standing_of(self._folder, time.time())

    def say(self, text: str) -> None:
        self._look(text.split(":")[0])

    def started(self, asked: Asked) -> None:
        self._look(f"{asked.number} started")

    def rung(self, number: int, rung: Rung) -> None:
        self._look(f"{number} at {rung.step}")

    def finished(self, result: TrialResult) -> None:
        self._look(f"{result.number} finished")


def test_where_a_search_stands_is_seen_from_outside_while_it_runs(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "_PAUSE", 0.0)  # its rungs follow each other more quickly
    file, folder = write_experiment(tmp_path), tmp_path / "run"
    view = Onlooker(folder)
    options = Options(trials=2)
    run_search(file, folder, driver=LocalDriver(), tracking_uri=tracking_uri, options=options, view=view)
    seen = view.seen
    preparing = seen["preparing the uncompressed model"]
    assert (preparing["state"], preparing["front"], preparing["running"]) == ("preparing", None, [])
    begun = seen["0 started"]
    assert begun["state"] == "searching"
    assert [one["number"] for one in begun["running"]] == [0]
    assert begun["seconds_left"] is None, "nothing has finished yet"
    assert begun["budget"] == {"trials": 2, "minutes": None, "worker_seconds": None}
    further = seen["1 at 4"]
    (running,) = further["running"]
    assert (running["number"], running["step"]) == (1, 4)
    assert running["accuracy"] > 0
    assert 0 < further["seconds_left"] < 60
    assert further["trials"]["complete"] == 1
    assert len(further["front"]["front"]) == 1
    assert seen["1 finished"]["used"]["trials"] == 2
    ended = seen["the search has ended"]
    assert (ended["state"], ended["ended"]) == ("finishing", "the budget of 2 trials is used up")
    after = standing_of(RunFolder(folder), time.time())
    assert (after["state"], after["running"], after["seconds_left"]) == ("finished", [], None)
    assert all(model["test"] for model in after["front"]["front"])


@contextmanager
def at_work_on(folder: RunFolder) -> Iterator[None]:
    """As a process that searches there."""
    with folder.log.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of six trials in the midst of the search, of which one failed; two more are under way."""
    folder = made_folder(tmp_path / "run", made_results())
    folder.front_json.write_text(made_front(made_results()).to_json())
    now = time.time()
    running = (
        Running(number=6, since=now - 12, rung=Rung(step=50, accuracy=0.41), metrics={"size_bytes": 42_000, "latency_ms": 0.4}),
        Running(number=7, since=now - 2, refit_of=1),
    )
    session = Session(
        began=now - 200,
        written=now - 1,
        doing="searching",
        searching=now - 150,
        trials=40,
        sampled=6,
        used=41.0,
        ends=now + 605,
        baseline=BASELINE,
        running=running,
    )
    folder.session.write_text(session.to_json())
    return folder


def test_status_tells_in_a_few_lines_how_far_a_search_is(folder: RunFolder, capsys: Capture) -> None:
    with at_work_on(folder):
        assert call("status", folder.path) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] in ("searching for 0:02:30, about 0:10:05 left", "searching for 0:02:31, about 0:10:04 left")
    assert lines[1:7] == [
        "budget 6/40",
        "trials 4 complete, 1 stopped, 1 failed, 0 trained further",
        "running trial 6: 10.0x smaller, 2.00x faster, accuracy 0.4100 after 50 steps (12 s)",
        "running trial 7: training trial 1 further (2 s)",
        "last failure trial 3: DivergedError: the loss was nan after 12 steps",
        "front 3 models, hypervolume 0.731",
    ]
    assert lines[8] == "4 smallest, fastest 46.7x smaller 5.33x faster 0.9400 -50% channels, w2 a8, 104 steps"
    assert lines[9].startswith("1 recommended, knee 17.5x smaller")
    assert lines[10].startswith("0 best 7.0x smaller")


def test_a_search_that_nobody_is_at_work_on_was_interrupted(folder: RunFolder, capsys: Capture) -> None:
    assert call("status", folder.path) == 0
    out = capsys.readouterr().out
    assert out.startswith("interrupted after 0:02:29: nobody is at work on it; `autocompress resume ")
    assert "running" not in out


def test_a_rival_under_way_is_told(folder: RunFolder, capsys: Capture) -> None:
    rival = made_folder(folder.baselines / "uniform", made_results())
    assert call("status", folder.path) == 0
    assert "is searching:" not in capsys.readouterr().out
    with at_work_on(rival):
        assert call("status", folder.path) == 0
    assert f"is searching: autocompress status {rival.path}" in capsys.readouterr().out


def test_status_for_machines_is_one_document_and_loads_no_torch(folder: RunFolder) -> None:
    code = (
        "import sys\nfrom autocompress.cli import main\n"
        f"try:\n    main(['status', {str(folder.path)!r}, '--json'])\n"
        "finally:\n    assert not {'torch', 'ray', 'optuna', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    with at_work_on(folder):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert told["state"] == "searching"
    assert 590 < told["seconds_left"] < 606
    assert [one["number"] for one in told["running"]] == [6, 7]
    assert told["last_failure"] == {"number": 3, "error": "DivergedError: the loss was nan after 12 steps"}
    assert told["front"]["picks"]["smallest"] == 4


def test_a_run_without_notes_of_its_session_is_told_as_far_as_it_is_known(folder: RunFolder, capsys: Capture) -> None:
    folder.session.unlink()
    assert call("status", folder.path) == 0
    out = capsys.readouterr().out
    assert out.startswith("finished\n")
    assert "budget" not in out
    folder.session.write_text("{")
    assert call("status", folder.path) == 2
    assert "session.json" in capsys.readouterr().err
    assert call("status", folder.path.parent) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_session_file_that_cannot_be_written_costs_the_search_nothing(tmp_path: Path, tracking_uri: str) -> None:
    file, folder = write_experiment(tmp_path), tmp_path / "run"
    (folder / "session.json").mkdir(parents=True)
    front = run_search(file, folder, driver=LocalDriver(), tracking_uri=tracking_uri, options=Options(trials=1))
    assert len(front.members) == 1
    assert "cannot write" in (folder / "autocompress.log").read_text()
