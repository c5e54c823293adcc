"""Serves the MLflow UI of a store on this machine alone. Does not load mlflow: the server is a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from autocompress.credentials import public_uri
from autocompress.errors import InputError, UnreachableError

HOST = "127.0.0.1"
_USUAL_PORT = 5000
# It takes ten seconds on a quiet machine.
_PATIENCE = 120.0
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextmanager
def serving(uri: str, port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of a server on the store at `uri`, which answers, and its process; it ends with this.

    `port` None is the usual one, or another one that is free. Raises `InputError` for a port that is taken,
    `UnreachableError` when the server does not come up.
    """
    port = _free(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    # Not on the command line, which every user of the machine can read: the URI may have a password in it.
    environment = os.environ | _ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": uri}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            address = f"http://{HOST}:{port}"
            deadline = time.monotonic() + _PATIENCE
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise UnreachableError(f"MLflow does not come up on {public_uri(uri)}: {_last_line(log.read())}")
                time.sleep(0.2)
            yield address, process
        finally:
            _end(process)


def _free(port: int | None) -> int:
    for wanted in [port] if port is not None else [_USUAL_PORT, 0]:
        with socket.socket() as probe:
            # As the server does: what was left a minute ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InputError(f"port {port} is taken; give another --port, or none for any that is free")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _last_line(log: bytes) -> str:
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it gave no reason"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the server and its workers, which have a group of their own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
