"""The cluster that docs/clusters.md describes, typed as it stands there, of which a node dies, and then the head."""

import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from autocompress.folder import RunFolder
from tests.documented import BIN, ROOT, commands
from tests.faults.processes import finished
from tests.faults.test_killed import check_whole
from tests.ray_nodes import ENVIRONMENT, Node, ray_node
from tests.servers import free_port
from tests.toy import write_experiment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

TRIALS, MORE = 8, 11
# Its trials take some time, and note on which node.
_SLOW = """
import os, time
from pathlib import Path

class Slow(ToyTask):
    def loss(self, outputs, targets):
        if "NODE" in os.environ:
            (Path({notes!r}) / os.environ["NODE"]).touch()
            time.sleep(0.3)
        return super().loss(outputs, targets)
"""
_PATIENCE = 600.0


@pytest.fixture
def ray_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where `auto` finds the cluster of this test and no other. A short path: Ray's sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": folder}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield


def section(title: str) -> str:
    return (ROOT / "docs/clusters.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def started(arguments: list[str], home: Path) -> "subprocess.Popen[bytes]":
    """A command, begun in `home`; what it says goes to the file `said`."""
    with (home / "said").open("wb") as said:
        return subprocess.Popen([str(BIN / arguments[0]), *arguments[1:]], cwd=home, stdout=said, stderr=said)


def until(holds: Callable[[], bool], process: "subprocess.Popen[bytes]", home: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        assert process.poll() is None, (home / "said").read_text()
        assert time.monotonic() < deadline, f"it never comes to that: {(home / 'said').read_text()}"
        time.sleep(0.05)


@pytest.mark.usefixtures("ray_home")
def test_the_cluster_of_the_documentation_loses_a_node_and_its_head(tmp_path: Path) -> None:
    head, node, search, stop = commands(section("Any Ray cluster"))
    assert stop == "ray stop", "it would end every Ray on this machine: those of the test end by themselves"
    notes = tmp_path / "notes"
    notes.mkdir()
    classes = _SLOW.format(notes=str(notes))
    write_experiment(tmp_path / "mine", task="Slow()", classes=classes, trials=TRIALS, name="experiment.py")
    port = free_port()  # Ray's own, which the page leaves to it, may be taken here
    assert "HEAD:6379" in node

    def begin(command: str, name: str) -> Node:
        words = shlex.split(command.replace("HEAD:6379", f"127.0.0.1:{port}"))
        assert words[:2] == ["ray", "start"]
        return nodes.enter_context(ray_node([*words[2:], *([f"--port={port}"] if "--head" in words else [])], tmp_path, name))

    with ExitStack() as nodes:
        first = begin(head, "head")
        others = {name: begin(node, name) for name in ("one", "other")}
        process = started(shlex.split(search), tmp_path)
        until(lambda: any((notes / name).exists() for name in others), process, tmp_path)
        lost = next(name for name in others if (notes / name).exists())
        others.pop(lost).kill()
        assert process.wait(_PATIENCE) == 0, (tmp_path / "said").read_text()
        (run,) = (tmp_path / "runs").iterdir()
        check_whole(RunFolder(run), TRIALS)

        resume = ["autocompress", "resume", str(run), "--address", "auto", "--concurrency", "1", "--trials", str(MORE)]
        process = started(resume, tmp_path)
        until(lambda: finished(run) > TRIALS, process, tmp_path)
        first.kill()
        assert process.wait(_PATIENCE) == 2, (tmp_path / "said").read_text()
        *_, last = (tmp_path / "said").read_text().splitlines()
        assert last == (
            "error: the Ray cluster at auto is gone (its processes on this machine have ended); what has finished is kept: "
            f"when a cluster is there again, `autocompress resume {run} --address auto` goes on"
        )
        assert "Traceback" not in (tmp_path / "said").read_text()
        before = RunFolder(run).results()
        assert {result.status for result in before} == {"complete"}, "no trial has failed because the head was lost"
        assert len(before) < MORE

        for other in others.values():
            other.kill()  # it would end by itself, after a minute without its head
        begin(head, "head again")
        process = started(["autocompress", "resume", str(run), "--address", "auto", "--concurrency", "1"], tmp_path)
        assert process.wait(_PATIENCE) == 0, (tmp_path / "said").read_text()
    assert RunFolder(run).results()[: len(before)] == before
    check_whole(RunFolder(run), MORE)
