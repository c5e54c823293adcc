"""A real MLflow server as a team has one: its runs in PostgreSQL, artifacts by way of the server alone."""

from pathlib import Path

import mlflow
from mlflow import MlflowClient

from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.opened import open_run
from autocompress.run import resume
from autocompress.trackers.mlflow import sync
from autocompress.trackers.mlflow_run import MlflowRun
from autocompress.trackers.mlflow_store import CHAMPION
from tests.faults.processes import in_mlflow, numbers
from tests.servers import Postgres, free_port, mlflow_at, mlflow_serving
from tests.toy import copy_run


def test_a_search_is_kept_whole_by_a_server_with_postgresql_and_an_artifact_proxy(
    toy_run: Path, tmp_path: Path, postgres: Postgres
) -> None:
    database, port = postgres.new("mlflow-server"), free_port()
    run, home = tmp_path / "run", tmp_path / "server"
    home.mkdir()
    copy_run(toy_run, run)
    (run / "mlflow.json").unlink()
    proxied = ["--artifacts-destination", str(home / "artifacts"), "--serve-artifacts"]
    uri = f"http://127.0.0.1:{port}"
    with mlflow_serving(["server", "--backend-store-uri", database, *proxied], home, port):
        front = resume(run, driver=LocalDriver(), trials=5, tracking_uri=uri)
        opened = open_run(run)
        sync(opened.folder, front, layers=opened.baseline().layers)  # a busy server may have taken too long for something
        parent, nested = in_mlflow(run)
        assert parent == "FINISHED"
        assert nested == {str(number): "FINISHED" for number in numbers(run)}
        assert len(nested) == 5
        noted, client = MlflowRun.from_json((run / "mlflow.json").read_bytes()), MlflowClient(uri, uri)
        stored = client.get_run(str(noted.parent_run_id))
        assert stored.info.artifact_uri.startswith("mlflow-artifacts:/"), "the server hands artifacts on"
        names = {file.path for file in client.list_artifacts(stored.info.run_id)}
        assert {"front.html", "front.md", "front.csv"} <= names
        got = Path(client.download_artifacts(stored.info.run_id, "front.md", str(tmp_path)))
        assert got.read_text() == (run / "front.md").read_text()
        chosen = front.recommended()
        assert chosen is not None
        with mlflow_at(uri):
            model = mlflow.onnx.load_model(f"models:/{noted.experiment_name}@{CHAMPION}")
        assert model.SerializeToString() == (run / str(chosen.model)).read_bytes()
        assert sync(opened.folder, front, layers=opened.baseline().layers) == 0
        assert list(home.glob("artifacts/**/front.html")), "the files are where the server keeps them"
    assert RunFolder(run).results()
