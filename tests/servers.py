"""Real MLflow servers for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_serving(command: Sequence[str], home: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """`mlflow COMMAND`, ready to answer on 127.0.0.1:port; it runs in `home` and dies at the end."""
    whole = [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log_file = home / "server.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(whole, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not _answers(port):
            assert process.poll() is None, log_file.read_text()[-2000:]
            assert time.monotonic() < deadline, f"the server does not come up: {log_file.read_text()[-2000:]}"
            time.sleep(0.3)
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends a server and its workers as a crash would."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
