"""Workers of a cluster that keep the files of their trials in a storage, and nodes that do not reach it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from autocompress.artifacts import InStorage
from autocompress.baseline import Baseline, Data
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import UnreachableError
from autocompress.result import Status
from autocompress.trial_files import CHECKPOINT
from tests.drivers.searching import Ear, experiment_file, search_of
from tests.ray_nodes import simulated
from tests.servers import S3_KEYS, s3_serving
from tests.test_artifacts import TAKING

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, which may use the S3 of the tests; a worker's current folder is its own copy of the experiment's."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in S3_KEYS.items():
            patch.setenv(name, value)
        with simulated({"num_cpus": 1}, {"num_cpus": 1}) as cluster:
            yield cluster


@pytest.mark.timeout(600)  # five workers start one after another
def test_workers_put_files_into_the_storage_and_one_that_is_gone_costs_the_trials_of_that_time(
    cluster: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    """One trial after another: which is the one that the storage is taken from must not depend on time."""
    start = [{"steps": 8, "batch": batch, "bits": 8} for batch in (18, 17)]
    (tmp_path / "home").mkdir()
    task = TAKING.replace("HERE.parent", f"Path({str(tmp_path)!r})")
    settings = f"budget=Budget(trials=2), refit=Refit(models=1, steps=8), start={start}"
    file = experiment_file(tmp_path / "home", settings, task=task)
    search, job = search_of(file, toy_baseline, toy_data)
    store = InStorage(f"file://{tmp_path}/store", "run-1")
    store.claim()
    job.folder.artifacts = store
    ear = Ear(search)
    TuneDriver(address=cluster.address, concurrency=1).run(search, job, ear)
    results = sorted(search.results, key=lambda result: result.number)
    assert [result.status for result in results] == [Status.FAILED, Status.COMPLETE, Status.COMPLETE]
    assert results[-1].refit_of is not None, "a worker had its checkpoint from there"
    assert (
        results[0].error
        == f"StorageError: {store.shown} is not what the search writes to: all machines must reach the same storage"
    )
    assert all(ear.heard.count(("finished", number)) == 1 for number in ear.results)
    assert not list((job.folder.path / "trials").glob("*")), "nothing of it went through the driver's machine"
    for result in results[1:]:
        kept = tmp_path / "store/run-1/trials" / f"{result.number:04d}"
        assert {path.name for path in kept.iterdir()} == {"model.onnx", "policy.json", CHECKPOINT}
        assert (kept / "model.onnx").stat().st_size == result.metrics["size_bytes"]


def test_a_folder_that_nodes_do_not_share_is_refused_before_the_first_trial(
    cluster: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    search, job = search_of(experiment_file(tmp_path / "home", "budget=Budget(trials=2)"), toy_baseline, toy_data)
    # The same name is another folder in each process, as on machines that share none.
    job.folder.artifacts = store = InStorage("/proc/self/cwd/store", "run-1")
    store.claim()
    ear = Ear(search)
    with pytest.raises(UnreachableError) as error:
        TuneDriver(address=cluster.address).run(search, job, ear)
    assert str(error.value).startswith("the machine ")
    assert str(error.value).endswith(
        ": /proc/self/cwd/store/run-1 is not what the search writes to: all machines must reach the same storage"
    )
    assert (ear.heard, [path.name for path in Path("store/run-1").iterdir()]) == ([], ["autocompress-run"])


@pytest.mark.timeout(600)
def test_files_go_to_s3_and_come_back_from_there(
    cluster: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    """By pyarrow's client for S3 and a server that speaks its protocol, HTTP between them."""
    (tmp_path / "home").mkdir()
    settings = "budget=Budget(trials=1), refit=Refit(models=1, steps=8), start=[{'steps': 8, 'batch': 17, 'bits': 8}]"
    search, job = search_of(experiment_file(tmp_path / "home", settings), toy_baseline, toy_data)
    with s3_serving(tmp_path, "models") as url:
        bucket, _, query = url.partition("?")
        store = InStorage(f"{bucket}/mine?{query}", "run-1")
        store.claim()
        job.folder.artifacts = store
        TuneDriver(address=cluster.address, concurrency=1).run(search, job, Ear(search))
        first, refit = sorted(search.results, key=lambda result: result.number)
        assert (first.status, refit.status, refit.refit_of) == (Status.COMPLETE, Status.COMPLETE, 0)
        assert not (job.folder.path / "trials").exists()
        for result in (first, refit):
            assert len(store.read(result.number, "model.onnx")) == result.metrics["size_bytes"]
        elsewhere = InStorage(f"{bucket}-of-another/mine?{query}", "run-1")
        with pytest.raises(UnreachableError, match=r"cannot write to s3://models-of-another/mine/run-1: .*NO_SUCH_BUCKET"):
            elsewhere.claim()
