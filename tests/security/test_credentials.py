"""Credentials in the URLs that a user gives: in no file, no line on the terminal, no database, no error."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.credentials import CleanFormatter, cleaned, public_uri, secrets_of
from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.run import resume
from autocompress.study import open_database
from tests.faults.processes import begin, command, ended
from tests.servers import Postgres
from tests.toy import call, copy_run, write_experiment

TOKEN, PASSWORD = "Tok-en-of-the-server", "Pass-w0rd-of-mlflow"


@pytest.mark.parametrize(
    ("uri", "shown", "secrets"),
    [
        ("https://me:s%2Fecret@host:1/path", "https://host:1/path", {"s%2Fecret", "s/ecret"}),
        ("https://token-only@host", "https://host", {"token-only"}),
        ("https://me:a/b?c#d@host/x", "https://host/x", {"a/b?c#d"}),
        ("postgresql+psycopg://me:p@ss@host/db?sslmode=require&password=more", None, {"p@ss", "more"}),
        ("postgresql:///db?host=/run/pg&user=me&password=more", "postgresql:///db?host=/run/pg", {"more"}),
        ("https://s3/b/k?X-Amz-Signature=abcdef&X-Amz-Credential=AKIA%2F1#part", "https://s3/b/k", {"abcdef", "AKIA/1"}),
        ("https://blob/c?sv=1&sig=abc%3D", "https://blob/c", {"abc%3D", "abc="}),
        (
            "s3://AKIA:a%2Fb%2Bc@bucket/x?region=eu-1&scheme=http",
            "s3://bucket/x?region=eu-1&scheme=http",
            {"a%2Fb%2Bc", "a/b+c"},
        ),
        ("abfs://models:a%2Fb%3D@account.dfs.core.windows.net/x", "abfs://models@account.dfs.core.windows.net/x", {"a/b="}),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db", set()),
        ("http://host:5000", "http://host:5000", set()),
        ("no uri", "no uri", set()),
    ],
)
def test_what_of_a_uri_is_shown(uri: str, shown: str | None, secrets: set[str]) -> None:
    if shown is not None:
        assert public_uri(uri) == shown
    assert secrets <= set(secrets_of(uri))
    told = cleaned(f"cannot open '{uri}': {' '.join(secrets)} was refused", *secrets_of(uri))
    assert not [secret for secret in secrets if secret in told]


def test_what_is_shown_can_be_used_again_where_it_had_no_secret() -> None:
    for uri in (
        "postgresql://host:5/db?sslmode=require&connect_timeout=3",
        "http://host:5000/prefix",
        "sqlite:///a.db",
        "abfs://box@host/x",
    ):
        assert public_uri(uri) == uri
        assert secrets_of(uri) == ()


@given(st.text("ABC019%@:/?#&=+ _-.~!$'()*,;[]", min_size=3, max_size=12).filter(lambda text: text.strip(".:/@?#&=") != ""))
def test_no_password_is_shown_however_badly_it_is_escaped(password: str) -> None:
    secret = f"x{password}x"
    for given_as in (secret, quote(secret, safe="")):
        uri = f"https://me:{given_as}@host.example/path?sslmode=require"
        assert public_uri(uri) == "https://host.example/path?sslmode=require"
        assert secret not in cleaned(f"no {given_as} and {secret}", *secrets_of(uri))


def test_a_traceback_in_the_log_has_no_secret() -> None:
    uri = "postgresql://me:Sec-ret@host/db"
    try:
        raise ValueError(f"{uri} and Sec-ret")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "file", 1, "at %s", (uri,), (type(error), error, error.__traceback__))
    text = CleanFormatter("%(message)s", secrets_of(uri)).format(record)
    assert text.startswith("at postgresql://host/db\nTraceback")
    assert "Sec-ret" not in text


class _Refusing(BaseHTTPRequestHandler):
    """Refuses whoever comes, and tells what was given: no server should, some do."""

    seen: list[str]

    def _answer(self) -> None:
        given = f"{self.path} {self.headers.get('Authorization')}"
        self.seen.append(given)
        body = json.dumps({"error_code": "PERMISSION_DENIED", "message": f"{PASSWORD} {TOKEN} is no password"}).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_PUT = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@contextmanager
def refusing() -> Iterator[tuple[int, list[str]]]:
    class Handler(_Refusing):
        seen: list[str] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, Handler.seen
    finally:
        server.shutdown()


def files_with(folder: Path, *secrets: str) -> list[str]:
    """The files below a folder in which one of the secrets stands."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets):
            found.append(str(path.relative_to(folder)))
    return found


def tables_with(url: str, *secrets: str) -> list[str]:
    """The tables of a PostgreSQL database in which one of the secrets stands."""
    with psycopg.connect(url) as connection:
        names = [row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        assert names
        rows = {name: str(connection.execute(f'SELECT t::text FROM "{name}" t').fetchall()) for name in names}
    return [name for name, text in rows.items() if any(secret in text for secret in secrets)]


def test_a_search_with_credentials_keeps_and_shows_none(tmp_path: Path, postgres: Postgres) -> None:
    storage = postgres.new("secret-studies")
    open_database(storage)
    folder, log = tmp_path / "all", tmp_path / "all/terminal.log"
    folder.mkdir()
    with refusing() as (port, seen):
        uri = f"http://me:{PASSWORD}@127.0.0.1:{port}?token={TOKEN}"
        arguments = ["--debug", "search", write_experiment(folder, trials=2), "--run", folder / "run", "--driver", "local"]
        process = begin(command, log, *arguments, "--tracking-uri", uri, "--storage", storage)
        assert ended(process) == 0, log.read_text()
    assert seen, "the server was asked"
    assert f"MLflow at http://127.0.0.1:{port} does not answer" in log.read_text()
    assert "missing in MLflow" in log.read_text()
    assert (folder / "run/front.html").exists()
    assert files_with(folder, PASSWORD, TOKEN, postgres.password) == []
    assert tables_with(storage, PASSWORD, TOKEN, postgres.password) == []


def test_mlflow_in_a_database_is_told_no_credentials(tmp_path: Path, toy_run: Path, postgres: Postgres) -> None:

    uri = postgres.new("secret-mlflow")
    copy_run(toy_run, tmp_path / "run")
    (tmp_path / "run/mlflow.json").unlink()
    resume(tmp_path / "run", driver=LocalDriver(), tracking_uri=uri)
    assert "experiments" not in tables_with(uri, postgres.password)
    assert tables_with(uri, postgres.password) == []
    assert files_with(tmp_path, postgres.password) == []


def test_what_was_not_kept_is_given_again_or_comes_from_the_environment(
    tmp_path: Path, postgres: Postgres, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = postgres.new("resumed")
    open_database(storage)
    run = tmp_path / "run"
    common = ["--driver", "local", "--quiet"]
    file = write_experiment(tmp_path, trials=1)
    assert call("search", file, "--run", run, "--tracking-uri", tracking_uri, "--storage", storage, *common) == 0
    capsys.readouterr()
    assert call("resume", run, "--trials", "2", *common) == 2
    told = capsys.readouterr().err
    assert "credentials are not kept: give --storage again, or set PGUSER and PGPASSWORD" in told
    assert told.count("\n") == 1
    monkeypatch.setenv("PGUSER", postgres.user)
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    assert call("resume", run, "--trials", "2", *common) == 0
    assert len(RunFolder(run).results()) == 2


def test_a_storage_that_refuses_is_told_without_its_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[str | Path] = [
        "search",
        write_experiment(tmp_path),
        "--run",
        tmp_path / "run",
        "--driver",
        "local",
        "--artifacts",
    ]
    with refusing() as (port, seen):
        where = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=eu-1"
        assert call(*arguments, f"s3://{TOKEN}:{PASSWORD}@bucket/x?{where}") == 2
    assert any(TOKEN in request for request in seen), "it was asked, with the key"
    told = capsys.readouterr().err
    assert told.startswith("error: cannot write to s3://bucket/x/run-")
    assert told.count("\n") == 1
    assert PASSWORD not in told
    assert files_with(tmp_path, PASSWORD, TOKEN) == []
    assert not (tmp_path / "run").exists()


# A storage of fsspec's that asks for a password, which only comes in its URL.
_VAULT = """
import fsspec
from fsspec.implementations.local import LocalFileSystem


class Vault(LocalFileSystem):
    protocol = "vault"

    def __init__(self, password="", **options):
        super().__init__(auto_mkdir=True, **options)
        if password != {password!r}:
            raise PermissionError(f"{{password}} is not the password")

    @classmethod
    def _strip_protocol(cls, path):
        return {folder!r} + "/" + path.rpartition("@")[2].rpartition("//")[2].removeprefix({folder!r})

    @staticmethod
    def _get_kwargs_from_urls(url):
        return {{"password": url.rpartition("@")[0].rpartition(":")[2]}}


fsspec.register_implementation("vault", Vault, clobber=True)
"""


def test_a_storage_with_a_password_is_used_and_keeps_and_shows_none(tmp_path: Path) -> None:
    folder, log = tmp_path / "all", tmp_path / "all/terminal.log"
    vault = _VAULT.format(password=PASSWORD, folder=str(tmp_path / "vault"))
    write_experiment(folder, classes="import vault", trials=2)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/vault.py").write_text(vault)  # it has the password, as the machine's own settings might
    (folder / "toy.py").write_text(
        f"import sys\nsys.path.append({str(tmp_path / 'beside')!r})\n" + (folder / "toy.py").read_text()
    )
    uri, run = f"sqlite:///{folder}/mlflow.db", folder / "run"
    common = ["--driver", "local", "--tracking-uri", uri]
    url = f"vault://me:{PASSWORD}@store"
    assert ended(begin(command, log, "--debug", "search", folder / "toy.py", "--run", run, "--artifacts", url, *common)) == 0
    assert len(list((tmp_path / "vault/store").glob("run-*/trials/*/model.onnx"))) == 2
    assert ended(begin(command, log, "--debug", "resume", run, "--trials", "3", *common)) == 2
    assert "give --artifacts again if it needs credentials" in log.read_text()
    assert ended(begin(command, log, "resume", run, "--trials", "3", "--artifacts", url, *common)) == 0
    assert len(list((tmp_path / "vault/store").glob("run-*/trials/*/model.onnx"))) == 3
    assert "vault://store" in (run / "run.json").read_text()
    assert files_with(folder, PASSWORD) == []
    assert files_with(tmp_path / "vault", PASSWORD) == []
