"""Models of MLflow's registry, and its user interface, by command."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from autocompress.errors import InputError
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.trackers.mlflow import promote
from autocompress.trackers.mlflow_run import MlflowRun
from autocompress.trackers.mlflow_server import serving
from tests.made import LAYERS, made_result, made_results
from tests.servers import free_port, mlflow_at
from tests.toy import call, copy_run
from tests.trackers.test_mlflow import EXPERIMENT, empty_store, everything, folder, tracked, uri

__all__ = ["empty_store", "folder", "uri"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def front(folder: RunFolder, uri: str) -> ParetoFront:
    """That of a run in MLflow: trial 1 is champion, 2 is not on the front but has a file, 3 failed."""
    results = made_results()
    results[2] = made_result(2, 61_000, 0.31, 0.970, bits=8, model="trials/0002/model.onnx")
    return tracked(folder, uri, results)


def result_of(folder: RunFolder, number: int):  # type: ignore[no-untyped-def]
    return next(result for result in folder.results() if result.number == number)


def test_an_alias_moves_from_model_to_model(folder: RunFolder, uri: str, front: ParetoFront) -> None:
    client = MlflowClient(tracking_uri=uri)
    status = everything(client)["parent"]["status"]
    four = promote(folder, result_of(folder, 4), front, "staging", layers=LAYERS)
    assert (four.name, four.version, four.before) == (EXPERIMENT, 2, None)
    once = everything(client)
    again = promote(folder, result_of(folder, 4), front, "staging", layers=LAYERS)
    assert (again.version, again.before) == (2, 2)
    assert everything(client) == once, "asked for twice it is there once"
    assert once["parent"]["status"] == status == "FINISHED"
    # The champion is registered already; one that is not on the front is logged first.
    one = promote(folder, result_of(folder, 1), front, "staging", layers=LAYERS)
    assert (one.version, one.before) == (1, 2)
    two = promote(folder, result_of(folder, 2), front, "candidate", layers=LAYERS)
    assert (two.version, two.before) == (3, None)
    aliases = dict(client.get_registered_model(EXPERIMENT).aliases)
    assert {name: int(version) for name, version in aliases.items()} == {"champion": 1, "staging": 1, "candidate": 3}
    with mlflow_at(uri):
        candidate = mlflow.pyfunc.load_model(f"models:/{EXPERIMENT}@candidate")
    np.testing.assert_array_equal(candidate.predict(np.ones((1, 4), dtype=np.float32))["y"], np.full((1, 3), 8.0))


def test_what_mlflow_missed_is_written_first(folder: RunFolder, uri: str, front: ParetoFront, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = f"sqlite:///{elsewhere / 'mlflow.db'}"
    shutil.copy(Path(uri.removeprefix("sqlite:///")), elsewhere / "mlflow.db")
    noted = json.loads(folder.mlflow_json.read_text())
    folder.mlflow_json.write_text(json.dumps(noted | {"key": "another", "parent_run_id": None, "trials": {}}))
    done = promote(folder, result_of(folder, 4), front, "staging", layers=LAYERS, uri=other)
    assert (done.name, done.before) == (EXPERIMENT, None)
    assert len(MlflowRun.from_json(folder.mlflow_json.read_bytes()).trials) == 6


@pytest.mark.parametrize("alias", ["latest", "v3", "two words", ""])
def test_an_alias_that_mlflow_does_not_take(folder: RunFolder, front: ParetoFront, alias: str) -> None:
    with pytest.raises(InputError, match="alias"):
        promote(folder, result_of(folder, 4), front, alias, layers=LAYERS)


def test_a_model_without_a_file_cannot_be_promoted(folder: RunFolder, front: ParetoFront) -> None:
    (folder.path / "trials/0002/model.onnx").unlink()
    with pytest.raises(InputError, match="cannot read a file of trial 2: "):
        promote(folder, result_of(folder, 2), front, "staging", layers=LAYERS)


@pytest.fixture
def logged_run(toy_run: Path, tmp_path: Path) -> Path:
    return copy_run(toy_run, tmp_path / "run")


def test_promote_is_a_command(logged_run: Path, capsys: Capture) -> None:
    assert call("promote", logged_run, "smallest", "--alias", "staging", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    smallest, name = told["trial"], told["name"]
    known = {"trial": smallest, "name": "toy", "version": told["version"], "alias": "staging"}
    assert told == known | {"before": None, "uri": "models:/toy@staging"}
    assert call("promote", logged_run, str(smallest), "--alias", "staging") == 0
    line = capsys.readouterr().out.strip()
    assert line == (f"trial {smallest} is {name} version {told['version']}, alias staging, as before: models:/toy@staging")
    assert call("promote", logged_run, "99", "--alias", "staging") == 2
    assert "no trial 99 in this run; its complete trials are 0, 1, 2, 3; did you mean 3?" in capsys.readouterr().err
    assert call("promote", logged_run, "smalest", "--alias", "staging") == 2
    assert "no pick 'smalest'; did you mean 'smallest'?" in capsys.readouterr().err
    lines = (logged_run / "trials.jsonl").read_text().splitlines()
    failed = json.loads(lines[0]) | {"status": "failed", "error": "it burst", "metrics": {}}
    (logged_run / "trials.jsonl").write_text("\n".join([json.dumps(failed), *lines[1:]]) + "\n")
    assert call("promote", logged_run, str(failed["number"]), "--alias", "staging") == 2
    assert f"trial {failed['number']} has no model: it failed (it burst)" in capsys.readouterr().err


def fetched(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:
        found: bytes = answer.read()
    return found.decode()


def test_ui_serves_the_store_of_a_run_at_its_page(logged_run: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "autocompress", "ui", str(logged_run), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        page, charts = process.stdout.readline().split()[-1], process.stdout.readline().split()[-1]
        noted = MlflowRun.from_json((logged_run / "mlflow.json").read_bytes())
        assert page == f"http://127.0.0.1:{port}/#/experiments/{noted.experiment_id}/runs/{noted.parent_run_id}"
        assert re.search(rf"/#/experiments/{noted.experiment_id}/runs\?", charts)
        assert "<title>MLflow</title>" in fetched(page)
        answer = json.loads(fetched(f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={noted.parent_run_id}"))
        assert answer["run"]["info"]["run_name"] == "run"
        with pytest.raises(InputError, match=f"port {port} is taken"), serving(noted.tracking_uri, port):
            pass
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    deadline = time.monotonic() + 60
    while listens(port):
        assert time.monotonic() < deadline, "it goes on without us"
        time.sleep(0.2)


def listens(port: int) -> bool:
    try:
        fetched(f"http://127.0.0.1:{port}/health")
    except OSError:
        return False
    return True


def test_ui_of_a_run_that_is_on_a_server_tells_its_address(logged_run: Path, tmp_path: Path, capsys: Capture) -> None:
    noted = json.loads((logged_run / "mlflow.json").read_text())
    with serving(noted["tracking_uri"]) as (address, _):
        assert call("ui", logged_run, "--tracking-uri", address) == 0
        assert f"{address}/#/experiments/" in capsys.readouterr().out
    assert call("ui", logged_run, "--tracking-uri", address) == 2, "it is gone"
    assert "cannot use MLflow at" in capsys.readouterr().err
    (logged_run / "mlflow.json").write_text(json.dumps(noted | {"parent_run_id": None}))
    assert call("ui", logged_run) == 2
    assert "is not in MLflow yet; write it by `autocompress sync" in capsys.readouterr().err
    assert call("ui", tmp_path / "none") == 2
    assert os.linesep not in capsys.readouterr().err.strip()
