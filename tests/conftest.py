"""What many tests share: the toy task, trained once."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from autocompress.baseline import Baseline, Data, load_data, make_baseline
from autocompress.drivers.local import LocalDriver
from autocompress.run import run_search
from autocompress.target import Target
from autocompress.testing import ToyTask
from tests.servers import Postgres, postgres_serving
from tests.toy import write_experiment


def pytest_configure() -> None:
    # Who starts the tests in the background leaves Ctrl-C ignored, in them and in all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Two cores, and real Ray workers beside the tests: more threads only get in each other's way.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_task() -> ToyTask:
    return ToyTask()


@pytest.fixture(scope="session")
def toy_data(toy_task: ToyTask) -> Data:
    return load_data(toy_task)


@pytest.fixture(scope="session")
def toy_baseline(toy_task: ToyTask, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    folder: Path = tmp_path_factory.mktemp("baseline")
    return make_baseline(toy_task, Target(), folder, seed=0)


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for many runs: making one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(tracking_uri=uri).search_experiments()
    return uri


@pytest.fixture(scope="session")
def toy_run(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search of four trials, one after another. Only to be read: `copy_run` is there to change it."""
    folder: Path = tmp_path_factory.mktemp("toy")
    file = write_experiment(folder)
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), folder / "mlflow.db")
    run_search(file, folder / "run", driver=LocalDriver(), tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "run"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL for all tests that want one."""
    with postgres_serving() as server:
        yield server
