"""Whatever stands in the files that we read: none of it is run."""

import ast
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.storages.journal._base import BaseJournalSnapshot

import autocompress
from autocompress.baseline import Baseline, Data
from autocompress.cli.front import show_front
from autocompress.cli.shared import new_console
from autocompress.drivers.local import LocalDriver
from autocompress.errors import InputError
from autocompress.export import export
from autocompress.folder import RunFolder
from autocompress.notebook import load_run
from autocompress.opened import open_run
from autocompress.option import options
from autocompress.run import resume
from autocompress.sensitivity import _key, cache_file, stored
from autocompress.study import _Journal
from autocompress.testing import ToyTask
from autocompress.verify import read_claims, verify
from tests.faults.test_damage import Hearing
from tests.security.bombs import BOMBS, pickled
from tests.tables_made import made_costs, made_sensitivity
from tests.toy import call, copy_run

# Loads of libraries that unpickle, or evaluate, what they read.
_FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "yaml", "cloudpickle", "code", "runpy"}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path: Path, bomb: str) -> None:
    mark = tmp_path / "mark"
    content = BOMBS[bomb](mark)
    if bomb == "torch":
        torch.load(io.BytesIO(content), weights_only=False)
    elif bomb == "numpy":
        np.load(io.BytesIO(content), allow_pickle=True)["weight"]
    else:
        pickle.loads(content)
    assert mark.exists()


def problem(command: Callable[[], object]) -> str:
    """What is wrong for the user, in a word of ours; empty when nothing is."""
    try:
        command()
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of file."""
    folder = tmp_path_factory.mktemp("pickles") / "run"
    copy_run(toy_run, folder)
    opened = open_run(folder)
    layers, target = opened.baseline().layers, opened.experiment().target
    (folder / "sensitivity.json").write_text(made_sensitivity(layers, target.menu).to_json())
    (folder / "costs.json").write_text(made_costs(layers, target).to_json())
    return folder


WEIGHTS = ("baseline/weights.safetensors", "trials/{number:04d}/student.safetensors")
READ = (
    *("run.json", "baseline/baseline.json", "baseline/model.onnx", "trials.jsonl", "front.json", "mlflow.json"),
    *("importance.json", "sensitivity.json", "costs.json", "study.log"),
    *("trials/{number:04d}/model.onnx", "trials/{number:04d}/policy.json", *WEIGHTS),
)


@pytest.mark.parametrize(
    ("name", "bomb"), [*((name, "pickle") for name in READ), *((name, bomb) for name in WEIGHTS for bomb in ("torch", "numpy"))]
)
def test_commands_that_read_a_run_run_nothing_of_it(run: Path, tmp_path: Path, name: str, bomb: str) -> None:
    number = open_run(run).front().members[0].number
    file, mark = run / name.format(number=number), tmp_path / "mark"
    before = file.read_bytes()
    file.write_bytes(BOMBS[bomb](mark) + b"\n")
    try:
        commands: list[Callable[[], object]] = [
            lambda: show_front(new_console(), run),
            lambda: load_run(run).trials,
            lambda: load_run(run).best(number).model(),
            lambda: export(open_run(run), str(number), tmp_path / "exported", max_drop=None),
        ]
        for command in commands:
            assert "\n" not in problem(command)
    finally:
        file.write_bytes(before)
    assert not mark.exists()


def test_resume_runs_nothing_of_what_it_mends(run: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(run, folder)
    mended = ("trials.jsonl", "front.json", "mlflow.json", "sensitivity.json", "costs.json", "study.log", "importance.json")
    for file in (*(folder / name for name in mended), *(folder / "trials").glob("*/*")):
        file.write_bytes(pickled(mark) + b"\n")
    (folder / "search.pkl").write_bytes(pickled(mark))  # what Ray Tune, or another, would look for
    (folder / "tuner.pkl").write_bytes(pickled(mark))
    view = Hearing()
    resume(folder, driver=LocalDriver(), trials=2, view=view)
    assert len(RunFolder(folder).results()) == 2
    assert sum("damaged" in told for told in view.warnings) >= 4
    assert not mark.exists()


@pytest.mark.parametrize("name", ["verify.json", "policy.json", "model.onnx"])
def test_verify_runs_nothing_of_an_exported_folder(run: Path, tmp_path: Path, name: str) -> None:
    into, mark = tmp_path / "exported", tmp_path / "mark"
    export(open_run(run), "smallest", into, max_drop=None)
    (into / name).write_bytes(pickled(mark))
    if name == "model.onnx":
        assert any(row.holds == "no" for row in verify(into))
    else:  # nobody reads the policy
        assert bool(problem(lambda: read_claims(into))) == (name == "verify.json")
    assert not mark.exists()


def test_sync_runs_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(run, folder)
    (folder / "mlflow.json").write_bytes(pickled(mark))
    assert call("sync", folder) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not mark.exists()


def test_the_cache_of_sensitivities_is_measured_anew(
    toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    key = _key(toy_task, toy_baseline, toy_data, options(toy_baseline.layers, toy_baseline.target.menu))
    cache_file(tmp_path, key).write_bytes(pickled(mark))
    assert stored(toy_task, toy_baseline, toy_data, tmp_path) is None
    assert not mark.exists()


def test_optuna_keeps_no_pickled_snapshot_of_our_journal() -> None:
    assert not issubclass(_Journal, BaseJournalSnapshot)


def test_no_module_of_ours_unpickles() -> None:
    """But for what the processes of one search send each other by Ray, which pickles itself.

    These are the errors of workers, in a folder that the search has just made, and what its driver gives its own actor.
    """
    package = Path(autocompress.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                names = [f"load({keyword.arg})" for keyword in node.keywords if keyword.arg == "allow_pickle"]
                of = node.func.value
                if isinstance(of, ast.Name) and of.id == "torch":
                    names.append("torch.load")
            found |= {(file.relative_to(package).as_posix(), name) for name in names if name.split(".")[0] in _FORBIDDEN}
            found |= {(file.relative_to(package).as_posix(), name) for name in names if "load" in name and "(" in name}
            found |= {(file.relative_to(package).as_posix(), name) for name in names if name == "torch.load"}
    assert found == {("drivers/tune.py", "cloudpickle"), ("drivers/shelf.py", "cloudpickle")}
