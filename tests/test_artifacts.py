"""A run that keeps the files of its trials in a storage: what is there, who reads it, and what is said when it is away."""

import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from autocompress.artifacts import InFolder, InStorage, absolute
from autocompress.drivers.local import LocalDriver
from autocompress.errors import InputError, StorageError, TrialError, UnreachableError
from autocompress.folder import RunFolder
from autocompress.notebook import load_run
from autocompress.opened import ArtifactsNote, open_run
from autocompress.result import Status
from autocompress.run import resume, run_search
from autocompress.trial_files import CHECKPOINT, checkpoint_of
from tests.drivers.searching import experiment_file
from tests.toy import call, write_experiment


class Elsewhere(LocalFileSystem):  # type: ignore[misc]
    """Folders, under a name that only fsspec knows."""

    protocol = "elsewhere"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("elsewhere://")


fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
# By pyarrow, and by fsspec.
_WAYS = ("{}", "file://{}", "elsewhere://{}")


@pytest.mark.parametrize("way", _WAYS)
def test_files_are_stored_and_found_again(way: str, tmp_path: Path) -> None:
    store = InStorage(way.format(tmp_path / "a%20store" if "file" in way else tmp_path / "a-store"), "run-1")
    with pytest.raises(StorageError, match="is not what the search writes to: all machines must reach the same storage"):
        store.keep(7, {"model.onnx": b"early"})
    store.claim()
    store.keep(7, {"model.onnx": b"one", "policy.json": b"{}"})
    store.keep(7, {"model.onnx": b"two"})
    elsewhere = pickle.loads(pickle.dumps(store))
    assert (elsewhere, elsewhere.read(7, "model.onnx")) == (store, b"two")
    stored = tmp_path / ("a store" if "file" in way else "a-store") / "run-1"
    assert {str(file.relative_to(stored)) for file in stored.rglob("*") if file.is_file()} == {
        "autocompress-run",
        "trials/0007/model.onnx",
        "trials/0007/policy.json",
    }
    with pytest.raises(FileNotFoundError) as missing:
        elsewhere.read(8, "model.onnx")
    assert str(missing.value.filename) == store.where(8, "model.onnx") == f"{store.shown}/trials/0008/model.onnx"
    with pytest.raises(StorageError):
        InStorage(store.url, "run-2").check()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere://me:Sec-ret@host/x", "nowhere://host/x is no storage for files: Protocol not known: nowhere; write it like"),
        ("s3://me:Sec-ret@bucket/x?colour=Sec-ret", "s3://bucket/x is no storage for files: Unexpected query parameter"),
        ("s3://", "s3:// names no bucket or folder for files; write it like "),
        ("/", "/ names no bucket or folder for files; "),
        ("", "'' is no storage for files"),
    ],
)
def test_what_is_no_storage(url: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        InStorage(absolute(url), "run-1").claim()
    assert str(error.value).startswith(said)
    assert "Sec-ret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", _WAYS)
def test_a_storage_that_cannot_be_written(way: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError, match=r"cannot write to .*file/store/run-1: "):
        InStorage(way.format(tmp_path / "file/store"), "run-1").claim()


@pytest.mark.parametrize("name", ["", "/etc", "../other", "a/../../b"])
def test_a_note_that_leads_out_of_the_storage(name: str) -> None:
    with pytest.raises(InputError, match="it leads out of the storage"):
        ArtifactsNote.from_json(f'{{"storage": "s3://bucket", "name": "{name}"}}')


def test_a_run_reads_from_the_storage_what_it_has_not_itself(
    tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = experiment_file(tmp_path, "budget=Budget(trials=2), refit=Refit(models=1, steps=8), start=[{'steps': 8}]")
    common = ["--driver", "local", "--quiet"]
    assert call("search", file, "--run", "run", "--tracking-uri", tracking_uri, "--artifacts", "store", *common) == 0
    run = RunFolder("run")
    results = run.results()
    assert [result.status for result in results] == [Status.COMPLETE] * 3
    assert results[-1].refit_of is not None, "its checkpoint came from there"
    assert not list(run.path.rglob("*/000?/*")), "the run folder has records and reports"
    (kept,) = (tmp_path / "store").iterdir()
    assert kept.name.startswith("run-")
    for result in results:
        folder = kept / "trials" / f"{result.number:04d}"
        assert (folder / "model.onnx").stat().st_size == result.metrics["size_bytes"]
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "policy.json", CHECKPOINT}
    opened = open_run("run")
    assert opened.note.artifacts == ArtifactsNote(storage=str(tmp_path / "store"), name=kept.name)
    front = opened.front()
    assert front.test.keys() == {member.number for member in front.members}
    assert (run.path / "front.html").exists()

    chosen = str(front.members[0].number)
    assert load_run("run").best(chosen).model() is not None
    assert call("export", "run", "--pick", chosen, "-o", "exported") == 0
    assert (tmp_path / "exported/model.onnx").read_bytes() == (
        kept / "trials" / f"{int(chosen):04d}" / "model.onnx"
    ).read_bytes()
    assert call("verify", "exported") == 0
    assert call("promote", "run", chosen, "--alias", "staging") == 0
    capsys.readouterr()

    (tmp_path / "store").rename(tmp_path / "moved")
    assert call("export", "run", "--pick", chosen, "-o", "exported") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot read a file of trial {chosen}: {tmp_path}/store/{kept.name}/trials/")
    assert said.count("\n") == 1
    assert call("resume", "run", "--trials", "3", *common) == 2
    said = capsys.readouterr().err
    assert "this run keeps its files there: give --artifacts again if it needs credentials" in said
    assert said.count("\n") == 1
    assert call("resume", "run", "--trials", "3", "--artifacts", "moved", *common) == 0
    assert len(list((tmp_path / "moved" / kept.name / "trials").iterdir())) == len(run.results()) > 3
    assert call("export", "run", "--pick", chosen, "-o", "exported") == 0, "it is noted where they are now"


def test_a_search_with_a_storage_that_is_none_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    arguments: list[str | Path] = [
        "search",
        write_experiment(tmp_path),
        "--run",
        tmp_path / "run",
        "--driver",
        "local",
        "--artifacts",
    ]
    for url, said in (
        ("s4://bucket", "error: s4://bucket is no storage for files: "),
        (tmp_path / "file/store", f"error: cannot write to {tmp_path}/file/store/run-"),
    ):
        assert call(*arguments, url) == 2
        told = capsys.readouterr().err
        assert told.startswith(said)
        assert told.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_run_that_has_its_files_itself_is_given_no_storage(toy_run: Path) -> None:
    with pytest.raises(InputError, match="keeps the files of its trials itself: leave out --artifacts"):
        resume(toy_run, driver=LocalDriver(), artifacts="anywhere")
    assert RunFolder(toy_run).artifacts == InFolder(toy_run)


# Takes the storage away: for trials with 17 examples a batch the first time, for those with 18 each time.
TAKING = """
class Task(ToyTask):
    def loss(self, outputs, targets):
        here, away = HERE.parent / "store", HERE.parent / "away"
        if len(outputs) == 17:
            with (HERE.parent / "steps").open("a") as file: file.write(".")
        if len(outputs) == 18 or (len(outputs) == 17 and (HERE.parent / "steps").stat().st_size <= 8):
            if here.exists(): here.rename(away)
        elif away.exists():
            away.rename(here)
        return super().loss(outputs, targets)
"""


def test_a_storage_that_is_gone_for_a_while_costs_no_more_than_the_trials_of_that_time(
    tmp_path: Path, tracking_uri: str
) -> None:
    start = [{"steps": 8, "batch": batch, "bits": bits} for batch, bits in ((16, 8), (17, 8), (18, 8), (16, 6))]
    (tmp_path / "home").mkdir()
    file = experiment_file(tmp_path / "home", f"budget=Budget(trials=4), start={start}", task=TAKING)
    store = str(tmp_path / "store")
    run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri, artifacts=store)
    results = RunFolder(tmp_path / "run").results()
    assert [result.status for result in results] == [Status.COMPLETE, Status.COMPLETE, Status.FAILED, Status.COMPLETE]
    assert (results[2].error or "").startswith(f"{store}/run-")
    assert "is not what the search writes to" in (results[2].error or "")
    (kept,) = Path(store).iterdir()
    assert sorted(path.name for path in (kept / "trials").iterdir()) == ["0000", "0001", "0003"]


def test_a_checkpoint_that_is_gone_from_the_storage(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    store = InStorage(str(tmp_path / "store"), "run-1")
    store.claim()
    run.artifacts = store

    with pytest.raises(TrialError, match=r"the checkpoint of trial 3 is gone from .*run-1; it cannot be trained further"):
        checkpoint_of(run.artifacts, 3, None)
    shutil.rmtree(tmp_path / "store/run-1")
    with pytest.raises(StorageError, match="is not what the search writes to"):
        checkpoint_of(run.artifacts, 3, None)
    (tmp_path / "store/run-1").write_text("a file in its place")
    with pytest.raises(StorageError, match="cannot read "):
        checkpoint_of(run.artifacts, 3, None)
