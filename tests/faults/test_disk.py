"""A run folder on a disk that fills up, or that turns read-only: a real one, which takes root to mount."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.drivers.local import LocalDriver
from autocompress.errors import RunFolderError
from autocompress.folder import RunFolder
from autocompress.listeners import Silent
from autocompress.opened import read_front
from autocompress.result import Status, TrialResult
from autocompress.run import resume
from tests.toy import copy_run


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip() or 'mount failed'}")


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A run of four trials on a disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", disk)
    try:
        copy_run(toy_run, disk / "run")
        yield disk / "run"
    finally:
        for mounted in (disk / "run", disk):
            subprocess.run(["umount", "-l", mounted], capture_output=True, check=False)


def fill(run: Path) -> None:
    with (run.parent / "ballast").open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def leave_little(run: Path) -> None:
    """Room for a line of the record, not for a model."""
    fill(run)
    ballast = run.parent / "ballast"
    os.truncate(ballast, ballast.stat().st_size - 4096)


def empty(run: Path) -> None:
    (run.parent / "ballast").unlink()


def turn_read_only(run: Path) -> None:
    _mount("--bind", run, run)
    _mount("-o", "remount,bind,ro", run)


def turn_writable(run: Path) -> None:
    subprocess.run(["umount", "-l", run], check=True)


class Then(Silent):
    """Does something to the run when its first trial has finished."""

    def __init__(self, run: Path, harm: Callable[[Path], None]) -> None:
        self._run, self._harm = run, harm
        self.finished_trials = 0

    def finished(self, result: TrialResult) -> None:
        self.finished_trials += 1
        if self.finished_trials == 1:
            self._harm(self._run)


HARMS = {
    "full": (fill, empty, "No space left on device"),
    "nearly full": (leave_little, empty, "No space left on device"),
    "read-only": (turn_read_only, turn_writable, "Read-only file system"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_disk_that_takes_nothing_more(run: Path, harm: str, capfd: pytest.CaptureFixture[str]) -> None:
    does, mends, says = HARMS[harm]
    folder = RunFolder(run)
    before = folder.results()
    with pytest.raises(RunFolderError, match=rf"cannot write .*: {says}; mend that, then `autocompress resume") as caught:
        resume(run, driver=LocalDriver(), trials=9, view=Then(run, does))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    mends(run)
    resume(run, driver=LocalDriver(), trials=7)
    after = folder.results()
    assert after[:4] == before
    assert len({result.number for result in after}) == len(after) == 7
    assert {result.status for result in after} == {Status.COMPLETE}, "no trial has failed for want of a disk"
    assert read_front(folder).test.keys() == {member.number for member in read_front(folder).members}
