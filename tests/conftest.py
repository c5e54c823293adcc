"""What many tests share: the toy task, trained once."""

from pathlib import Path

import pytest
import torch

from autocompress.baseline import Baseline, Data, load_data, make_baseline
from autocompress.target import Target
from autocompress.testing import ToyTask


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
