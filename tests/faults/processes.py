"""Searches in processes of their own, which a test may kill; they start from a server that has loaded all."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from mlflow import MlflowClient

from autocompress.folder import RunFolder
from autocompress.trackers.mlflow_run import MlflowRun

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.faults.preloaded"])
_PATIENCE = 280.0


def begin(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Calls a function of a module in a process of its own; its process group has that one's number."""
    process = _SERVER.Process(target=_apart, args=(function, *arguments))
    process.start()
    return process


def _apart(function: Callable[..., object], *arguments: object) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    function(*arguments)


def command(log: Path, *arguments: str | Path) -> None:
    """`autocompress ARGUMENTS`, with all that it says in the file `log`."""
    from autocompress.cli import main

    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(to, 1)
    os.dup2(to, 2)
    main([str(argument) for argument in arguments])


def ended(process: ForkServerProcess) -> int:
    """The exit code, of one that was killed the number of the signal below zero."""
    process.join(_PATIENCE)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode


@contextmanager
def running(function: Callable[..., object], *arguments: object) -> Iterator[ForkServerProcess]:
    process = begin(function, *arguments)
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def wait_until(holds: Callable[[], bool], process: ForkServerProcess) -> None:
    """Until that holds, or the process has ended."""
    deadline = time.monotonic() + _PATIENCE
    while process.is_alive() and not holds():
        assert time.monotonic() < deadline, "it never comes to that"
        time.sleep(0.01)


def finished(folder: Path) -> int:
    """How many trials are in the record."""
    record = folder / "trials.jsonl"
    return record.read_bytes().count(b"\n") if record.exists() else 0


def recorded(folder: Path) -> bytes:
    """The whole lines of the record: what is there for good."""
    record = RunFolder(folder).record
    content = record.read_bytes() if record.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def numbers(folder: Path) -> list[int]:
    return [result.number for result in RunFolder(folder).results()]


def in_mlflow(folder: Path) -> tuple[str, dict[str, str]]:
    """The status of the parent run, and of the nested runs by the numbers of their trials."""
    noted = MlflowRun.from_json((folder / "mlflow.json").read_bytes())
    client = MlflowClient(tracking_uri=noted.tracking_uri)
    found = client.search_runs([str(noted.experiment_id)], f"tags.`mlflow.parentRunId` = '{noted.parent_run_id}'")
    nested = [(run.data.tags["autocompress.trial"], run.info.status) for run in found]
    assert len(dict(nested)) == len(nested), f"a trial is there twice: {sorted(nested)}"
    return client.get_run(str(noted.parent_run_id)).info.status, dict(nested)
