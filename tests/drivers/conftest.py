"""One Ray for all tests of a module that do not need their own: it takes seconds to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.drivers.cluster import ray_cluster
from autocompress.folder import RunFolder


@pytest.fixture(scope="module")
def running_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("ray")
    with ray_cluster(None, threads=1, experiment_file=folder / "experiment.py", run=RunFolder(folder)):
        yield
