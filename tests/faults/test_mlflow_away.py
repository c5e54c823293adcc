"""An MLflow server that is away when a search begins, comes back, and goes for good: the search goes on, MLflow gets it all."""

import shutil
from contextlib import ExitStack
from pathlib import Path

from mlflow import MlflowClient

from autocompress.drivers.local import LocalDriver
from autocompress.listeners import Silent
from autocompress.opened import open_run, read_front
from autocompress.result import TrialResult
from autocompress.run import resume
from autocompress.trackers.mlflow import sync
from autocompress.trackers.mlflow_run import MlflowRun, sqlite_file
from tests.faults.processes import in_mlflow, numbers
from tests.servers import free_port, kill, mlflow_serving
from tests.toy import copy_run


class Watching(Silent):
    """Keeps the warnings, and does something when the first trial has finished."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.finished_trials = 0

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def finished(self, result: TrialResult) -> None:
        self.finished_trials += 1
        if self.finished_trials == 1:
            self.then()

    def then(self) -> None:
        """Nothing."""


def hypervolumes(folder: Path) -> dict[int, float]:
    """Of the parent run, by the number of trials; each step once, at the time when its trial ended."""
    noted = MlflowRun.from_json((folder / "mlflow.json").read_bytes())
    history = MlflowClient(tracking_uri=noted.tracking_uri).get_metric_history(str(noted.parent_run_id), "hypervolume")
    steps = [metric.step for metric in history]
    assert len(steps) == len(set(steps)), "a step is there twice"
    ordered = sorted(history, key=lambda metric: metric.step)
    assert [metric.timestamp for metric in ordered] == sorted(metric.timestamp for metric in history)
    return {metric.step: metric.value for metric in ordered}


def check_all_there(folder: Path, trials: int) -> None:
    parent, nested = in_mlflow(folder)
    assert parent == "FINISHED"
    assert nested == {str(number): "FINISHED" for number in numbers(folder)}
    assert len(nested) == trials
    volumes = hypervolumes(folder)
    assert list(volumes) == list(range(1, trials + 1))
    assert list(volumes.values()) == sorted(volumes.values())


def test_a_server_that_is_away_at_the_start_comes_back_and_goes_for_good(
    toy_run: Path, tmp_path: Path, tracking_uri: str
) -> None:
    folder, home = tmp_path / "run", tmp_path / "server"
    copy_run(toy_run, folder)
    (folder / "mlflow.json").unlink()
    home.mkdir()
    database = sqlite_file(tracking_uri)
    assert database is not None
    shutil.copy(database, home / "mlflow.db")  # to make one takes seconds
    port = free_port()
    command = ["server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "art")]

    with ExitStack() as servers:

        class ComingBack(Watching):
            def then(self) -> None:
                self.server = servers.enter_context(mlflow_serving(command, home, port))

        first = ComingBack()
        resume(folder, driver=LocalDriver(), trials=6, tracking_uri=f"http://127.0.0.1:{port}", view=first)
        (told,) = first.warnings
        assert told.startswith(f"MLflow at http://127.0.0.1:{port} does not answer (")
        assert "the search goes on" in told
        check_all_there(folder, 6)

        class Going(Watching):
            def then(self) -> None:
                kill(first.server)

        second = Going()
        resume(folder, driver=LocalDriver(), trials=8, view=second)
        assert len(numbers(folder)) == 8
        assert "missing in MLflow" in second.warnings[-1]
        assert second.warnings[-1].endswith(f"write what is missing by `autocompress sync {folder}`")

    opened = open_run(folder)
    front, layers = read_front(opened.folder), opened.baseline().layers
    with mlflow_serving(command, home, port):
        assert sync(opened.folder, front, layers=layers) >= 1
        check_all_there(folder, 8)
        assert sync(opened.folder, front, layers=layers) == 0
        check_all_there(folder, 8)
