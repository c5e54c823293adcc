"""Real MLflow and PostgreSQL servers for tests."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import psycopg
import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_serving(command: Sequence[str], home: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """`mlflow COMMAND`, ready to answer on 127.0.0.1:port; it runs in `home` and dies at the end."""
    whole = [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with _serving(whole, home, environment, f"http://127.0.0.1:{port}/health") as process:
        yield process


@contextmanager
def _serving(
    command: Sequence[str], home: Path, environment: Mapping[str, str], answers_at: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that runs in `home`, from when it answers at that URL; it dies at the end."""
    log_file = home / "server.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not _answers(answers_at):
            assert process.poll() is None, log_file.read_text()[-2000:]
            assert time.monotonic() < deadline, f"the server does not come up: {log_file.read_text()[-2000:]}"
            time.sleep(0.3)
        yield process
    finally:
        kill(process)


S3_KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "Sec-ret-of-s3"}


@contextmanager
def s3_serving(home: Path, bucket: str) -> Iterator[str]:
    """A server that speaks as S3 does, which holds objects in memory; the URL of an empty bucket of it, for pyarrow."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _serving(command, home, os.environ, f"http://127.0.0.1:{port}/moto-api/"):
        key, secret = S3_KEYS.values()
        options = {"region_name": "us-east-1", "aws_access_key_id": key, "aws_secret_access_key": secret}
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **options).create_bucket(Bucket=bucket)
        yield f"s3://{bucket}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """`mlflow.…` without a client goes to `uri` meanwhile. (An environment variable would not do after this.)"""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends a server and its workers as a crash would."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL that answers on 127.0.0.1 to one user, by password."""

    port: int
    user: str = "tester"
    password: str = "Pass-w0rd-of-postgres"

    def url(self, database: str, *, password: str | None = None) -> str:
        return f"postgresql://{self.user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def new(self, database: str) -> str:
        """Makes a database; its URL."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)


@contextmanager
def postgres_serving() -> Iterator[Postgres]:
    """A PostgreSQL of its own, that forgets all at the end. As root it runs as the user postgres: it refuses root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = programs[-1].parent if programs else Path(shutil.which("initdb") or "").parent
    if not (found / "initdb").exists() or not (found / "postgres").exists():
        assert not os.environ.get("CI"), "there is no PostgreSQL"
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    server = Postgres(free_port())
    with tempfile.TemporaryDirectory(prefix="autocompress-postgres-") as scratch:
        home, secret = Path(scratch), Path(scratch) / "password"
        secret.write_text(server.password)
        log = home / "server.log"
        log.touch()
        for path in (home, secret, log):
            shutil.chown(path, user)
        data = ["-D", str(home / "data")]
        made = [*data, "-U", server.user, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--locale=C", "-E", "UTF8"]
        subprocess.run([found / "initdb", *made], check=True, capture_output=True, user=user, cwd=home)
        options = ["-p", str(server.port), "-h", "127.0.0.1", "-k", str(home), "-c", "fsync=off", "-c", "max_connections=200"]
        with log.open("ab") as file:
            process = subprocess.Popen([found / "postgres", *data, *options], stdout=file, stderr=file, user=user, cwd=home)
        try:
            deadline = time.monotonic() + 60
            while not _accepts(server):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, f"the server does not come up: {log.read_text()[-2000:]}"
                time.sleep(0.1)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # without waiting for who is connected
            process.wait(30)


def _accepts(server: Postgres) -> bool:
    try:
        psycopg.connect(server.url("postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
