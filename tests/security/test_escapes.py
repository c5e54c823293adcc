"""Names and links that lead out of a run folder: nothing outside is read or written for them."""

import json
import shutil
from pathlib import Path

import pytest

from autocompress.drivers.local import LocalDriver
from autocompress.drivers.shelf import Shelf
from autocompress.errors import InputError, RunFolderError
from autocompress.export import export
from autocompress.folder import RunFolder
from autocompress.opened import open_run
from autocompress.policy import LayerPolicy, Policy
from autocompress.run import resume, run_search
from autocompress.target import Target
from tests.faults.test_damage import Hearing
from tests.toy import call, copy_run, write_experiment

SECRET = "what is outside"


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    return copy_run(toy_run, tmp_path / "run")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside/model.onnx"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert call(*arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    return told


@pytest.mark.parametrize("model", ["../outside/model.onnx", "{outside}", "trials/../../outside/model.onnx", ""])
def test_a_record_that_names_a_file_outside_is_refused(
    run: Path, outside: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(run)
    first, *others = folder.record.read_text().splitlines(keepends=True)
    bad = json.dumps(json.loads(first) | {"model": model.format(outside=outside)})
    folder.record.write_text(f"{bad}\n{''.join(others)}")
    for arguments in (("front", run), ("export", run, "--pick", "0", "-o", tmp_path / "out"), ("sync", run)):
        assert "it leads out of the run folder" in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()
    view = Hearing()
    resume(run, driver=LocalDriver(), view=view)
    assert any("it leads out of the run folder" in told and "its trial is lost" in told for told in view.warnings)


def test_a_front_and_a_baseline_that_name_a_file_outside_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    front = run / "front.json"
    stored = json.loads(front.read_text())
    member = stored["members"][0]
    member["model"] = "../outside/model.onnx"
    whole = front.read_text()
    front.write_text(json.dumps(stored))
    assert "it leads out of the run folder" in refused(capsys, "front", run)
    front.write_text(whole)
    baseline = run / "baseline/baseline.json"
    stored = json.loads(baseline.read_text())
    stored["files"] = dict.fromkeys(stored["files"], "../../outside/model.onnx")
    stored["sha256"]["../../outside/model.onnx"] = "0" * 64
    baseline.write_text(json.dumps(stored))
    assert "'../../outside/model.onnx' leads out of it" in refused(capsys, "front", run)


def test_a_complete_trial_without_a_file_is_no_way_out(run: Path, outside: Path, tmp_path: Path) -> None:
    (run.parent / "model.onnx").write_text(SECRET)
    folder = RunFolder(run)
    lines = [json.dumps(json.loads(line) | {"model": None}) for line in folder.record.read_text().splitlines()]
    folder.record.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(RunFolderError, match="the record names no file of trial 0"):
        export(open_run(run), "0", tmp_path / "out", max_drop=None)


LINKS = (
    "trials.jsonl",
    "autocompress.log",
    "study.log",
    "trials",
    "baseline/model.onnx",
    "trials/0000/model.onnx",
)


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leads_out_is_refused(
    run: Path, outside: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, is_folder = run / name, (run / name).is_dir()
    shutil.rmtree(place) if is_folder else place.unlink(missing_ok=True)
    place.symlink_to(outside.parent if is_folder else outside)
    commands: list[tuple[str | Path, ...]] = [
        ("front", run),
        ("sync", run),
        ("resume", run, "--driver", "local"),
        ("baseline", run, "--driver", "local"),
        ("export", run, "--pick", "0", "-o", tmp_path / "out"),
    ]
    for arguments in commands:
        told = refused(capsys, *arguments)
        assert f"{place} is a symbolic link that leads out of the run folder" in told
    assert outside.read_text() == SECRET
    assert [file.name for file in outside.parent.iterdir()] == [outside.name]
    assert not (tmp_path / "out").exists()


def test_a_link_that_waits_for_a_search_is_refused(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "trials.jsonl").symlink_to(outside)
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        run_search(write_experiment(tmp_path), folder, driver=LocalDriver(), tracking_uri=f"sqlite:///{tmp_path}/m.db")
    assert outside.read_text() == SECRET


def test_links_within_a_run_and_to_a_run_are_fine(run: Path, tmp_path: Path) -> None:
    (run / "latest").symlink_to(run / "trials/0000")
    (tmp_path / "link").symlink_to(run)
    assert open_run(tmp_path / "link").folder.path == run


def test_an_export_replaces_links_and_does_not_follow_them(run: Path, tmp_path: Path, outside: Path) -> None:
    into = tmp_path / "out"
    export(open_run(run), "0", into, max_drop=None)
    for name in ("model.onnx", "verify.json", "policy.json", "README.md"):
        (into / name).unlink()
        (into / name).symlink_to(outside)
    (into / "verify.json").unlink()
    (into / "verify.json").write_text("{}")
    export(open_run(run), "0", into, max_drop=None)
    assert outside.read_text() == SECRET
    assert not any(file.is_symlink() for file in into.iterdir())


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", ".."])
def test_names_in_a_policy_are_those_of_layers(run: Path, name: str) -> None:
    layers = open_run(run).baseline().layers
    for policy in (Policy(layers={name: LayerPolicy(weight_bits=4)}), Policy(channel_sparsity={name: 0.5})):
        with pytest.raises(InputError, match="no "):
            policy.check(layers, Target().menu)


@pytest.mark.parametrize("name", ["../../../outside/model.onnx", "/outside/model.onnx", "a/b"])
def test_files_that_a_worker_sends_land_in_the_folder_of_their_trial(tmp_path: Path, name: str) -> None:
    shelf = Shelf(str(tmp_path / "run"), b"")
    assert shelf.keep(3, {name: b"x"}) is None
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()] == [
        Path("run/trials/0003") / Path(name).name
    ]
    assert shelf.give(3, name) == b"x"
