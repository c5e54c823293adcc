"""Joining a Ray cluster: several nodes that share no folder with the driver, one that dies, and clusters that are not there."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Job
from autocompress.drivers.cluster import LANE
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import UnreachableError
from autocompress.folder import RunFolder
from autocompress.option import options
from autocompress.result import Rung, Status
from autocompress.run import run_search
from autocompress.search import Search
from tests.drivers.searching import Ear, experiment_file, search_of
from tests.ray_nodes import simulated

pytestmark = pytest.mark.ray

# Trials note on which node they ran, from where their experiment was loaded, and what lay beside it.
_NOTING = """
import ray

class Task(ToyTask):
    def loss(self, outputs, targets):
        time.sleep(0.05)
        note = Path({notes!r}) / ray.get_runtime_context().get_node_id()
        part = note.parent.with_name(f"{{os.getpid()}}.part")
        beside = sorted(name for name in os.listdir() if name != "__pycache__")
        part.write_text(" ".join([str(HERE), *beside]))
        part.replace(note)  # whole or not at all: the node may die any moment
        return super().loss(outputs, targets)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with simulated({"num_cpus": 1}, {"num_cpus": 1, "resources": {LANE: 1}}) as cluster:
        yield cluster


def test_trials_run_on_all_nodes_and_their_files_come_home(
    cluster: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job, notes = _noting_search(tmp_path, toy_baseline, toy_data, trials=4)
    neighbour = job.experiment_file.with_name("neighbour.py")
    neighbour.touch()
    job.experiment_file.write_text(f"import neighbour\n{job.experiment_file.read_text()}")
    ear = Ear(search)
    TuneDriver(address=cluster.address).run(search, job, ear)
    assert [result.error for result in search.results] == [None] * 4
    assert {path.name for path in notes.iterdir()} == {node.node_id for node in _nodes(cluster)}
    for note in notes.iterdir():
        folder, *beside = note.read_text().split()
        assert not Path(folder).is_relative_to(tmp_path), "the worker has its own copy"
        assert beside == ["experiment.py", "neighbour.py"], "the run folder stays at home"
    for result in search.results:
        assert result.model is not None
        assert (job.folder.path / result.model).stat().st_size == result.metrics["size_bytes"]
    assert not ray.is_initialized()


_TELLING = """
import ray

if ray.is_initialized():
    note = Path({notes!r}) / ray.get_runtime_context().get_node_id()
    note.write_text(str(HERE))

Task = ToyTask
"""


def test_in_a_session_workers_find_the_experiment_in_their_copy_and_costs_are_measured_in_the_lane(
    cluster: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    file = experiment_file(home, "budget=Budget(trials=1)", task=_TELLING.format(notes=str(notes)))
    search, job = search_of(file, toy_baseline, toy_data)
    driver = TuneDriver(address=cluster.address)

    def told() -> dict[str, bool]:
        """The nodes on which the experiment was loaded, and whether it was the original."""
        paths = {note.name: Path(note.read_text()) for note in notes.iterdir()}
        for note in notes.iterdir():
            note.unlink()
        return {node: path.is_relative_to(tmp_path) for node, path in paths.items()}

    with driver.session(job):
        assert driver.costs(job, 3).layers
        assert told() == {node["NodeID"]: False for node in ray.nodes() if LANE in node["Resources"]}  # type: ignore[no-untyped-call]
        wanted = options(toy_baseline.layers, toy_baseline.target.menu)
        assert {option for option, _, _ in driver.divergences(wanted, job)} == set(wanted)
        assert told() == {node.node_id: False for node in _nodes(cluster)}
        driver.run(search, job, Ear(search))
        assert list(told().values()) == [False]
    assert [result.error for result in search.results] == [None]
    assert not ray.is_initialized()


def _nodes(cluster: Cluster) -> Any:
    return cluster.list_all_nodes()  # type: ignore[no-untyped-call]


class _PullingThePlug(Ear):
    """Takes the node away when a trial has begun to train there."""

    def __init__(self, search: Search, cluster: Cluster, node: Any, notes: Path) -> None:
        super().__init__(search)
        self.pulled: threading.Thread | None = None
        self._cluster, self._node, self._note = cluster, node, notes / node.node_id

    def rung(self, number: int, rung: Rung) -> None:
        super().rung(number, rung)
        if self.pulled is None and self._note.exists():
            self.pulled = threading.Thread(target=self._cluster.remove_node, args=(self._node, False))
            self.pulled.start()


def test_trials_of_a_node_that_dies_are_run_again_elsewhere(
    cluster: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=1)
    search, job, notes = _noting_search(tmp_path, toy_baseline, toy_data, trials=5)
    # As in a resumed run whose original experiment is gone.
    job = replace(job, experiment_file=job.experiment_file.rename(job.folder.experiment))
    ear = _PullingThePlug(search, cluster, node, notes)
    TuneDriver(address=cluster.address).run(search, job, ear)
    assert ear.pulled is not None
    ear.pulled.join()
    assert [result.status for result in search.results] == [Status.COMPLETE] * 5
    assert all(ear.heard.count(("started", number)) == 1 for number in ear.results)
    assert {tuple(note.read_text().split()[1:]) for note in notes.iterdir()} == {("experiment.py",)}


def _noting_search(folder: Path, baseline: Baseline, data: Data, *, trials: int) -> tuple[Search, Job, Path]:
    notes = folder / "notes"
    notes.mkdir()
    home = folder / "home"
    home.mkdir()
    start = [{"steps": 12, "bits": bits} for bits in range(2, 2 + trials)]
    settings = f"budget=Budget(trials={trials}), start={start}"
    file = experiment_file(home, settings, task=_NOTING.format(notes=str(notes)))
    search, job = search_of(file, baseline, data)
    return search, job, notes


def _refused(address: str, baseline: Baseline, data: Data, folder: Path) -> str:
    search, job = search_of(experiment_file(folder, "budget=Budget(trials=1)"), baseline, data)
    begin = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        TuneDriver(address=address).run(search, job, Ear(search))
    assert time.monotonic() - begin < 45, "Ray itself would try for a minute; its command takes some seconds to load"
    assert not ray.is_initialized()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_address_where_nobody_listens_is_refused(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    message = _refused(address, toy_baseline, toy_data, tmp_path)
    assert message.startswith(f"no Ray cluster at {address} ([Errno 111] Connection refused); ")
    assert "ray start --head" in message


def test_a_cluster_that_does_not_answer_is_refused(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setitem(os.environ, "RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        message = _refused("auto", toy_baseline, toy_data, tmp_path)
    assert message.startswith("no Ray cluster at auto (no answer within 10 s); ")


def test_a_client_address_is_refused_with_the_way_out(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    assert "ray job submit" in _refused("ray://head:10001", toy_baseline, toy_data, tmp_path)


# A board that only one node can reach.
_BOARD = """
import ray
from autocompress import Target
from autocompress.runtimes import Runtime, register
from autocompress.runtimes.onnxruntime import OnnxSession, export
from autocompress.target import MENUS

class Board(OnnxSession):
    def __init__(self, model, target):
        super().__init__(model, target)
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "driver"
        (Path({notes!r}) / node).touch()

register("board", Runtime(export=export, load=Board), MENUS["onnxruntime"])

Task = ToyTask
"""


def test_files_run_on_the_node_that_has_the_device_and_nowhere_else(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, resources={"target:board-cpu": 1})
    notes = tmp_path / "notes"
    notes.mkdir()
    settings = "budget=Budget(trials=2), target=Target(runtime='board', also=(Target(),))"
    file = experiment_file(tmp_path, settings, task=_BOARD.format(notes=str(notes)))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    front = run_search(file, tmp_path / "run", driver=TuneDriver(address=cluster.address), tracking_uri=uri)
    assert {note.name for note in notes.iterdir()} == {node.node_id}
    results = RunFolder(tmp_path / "run").results()
    assert [result.error for result in results] == [None, None]
    assert all(result.metrics["latency_ms/onnxruntime-cpu"] > 0 for result in results)
    assert front.test.keys() == {member.number for member in front.members}
    cluster.remove_node(node)
