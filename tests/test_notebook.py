"""Runs as a notebook sees them: tables, a picture, models as modules and files."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from autocompress.errors import InputError, RunFolderError
from autocompress.notebook import SearchRun, load_run, search
from autocompress.testing import ToyTask
from autocompress.trial_files import CHECKPOINT
from autocompress.verify import read_claims
from tests.toy import write_experiment


@pytest.fixture(scope="module")
def run(toy_run: Path) -> SearchRun:
    return load_run(toy_run)


def test_a_search_is_one_call(tmp_path: Path) -> None:
    file = write_experiment(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = search(file, tmp_path / "run", trials=1, seed=3, limits=["size <= 1 MB"], driver="local", tracking_uri=uri)
    assert len(found.trials) == 1
    assert repr(found) == "<run run: 1 trial>"
    with pytest.raises(RunFolderError, match="a run"):
        search(file, tmp_path / "run", driver="local", tracking_uri=uri)
    with pytest.raises(InputError, match="a driver is 'tune', 'local' or an object, given 'ray'"):
        search(file, tmp_path / "other", driver="ray", tracking_uri=uri)  # type: ignore[arg-type]


def test_the_front_is_a_table_and_a_picture(run: SearchRun) -> None:
    assert isinstance(run.front, pd.DataFrame)
    assert set(run.front.index) == set(run.trials[run.trials["on_front"]]["number"])
    assert (run.front["size_ratio"] > 1).all()
    figure = run.plot()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it, though pyplot is not loaded"


def test_a_run_shows_itself_and_escapes_names(run: SearchRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run._repr_html_()
    best = run.best()
    assert f"recommended: trial {best.number}: " in shown
    assert shown.count("<tr") == 1 + len(run.front)
    monkeypatch.chdir(run.folder.parent)
    assert '<a href="run/front.html">front.html</a>' in run._repr_html_()
    hostile = tmp_path / "<script>alert(1)<"
    shutil.copytree(run.folder, hostile)
    assert "<script" not in load_run(hostile)._repr_html_()


def test_a_run_without_a_finished_trial_says_so(run: SearchRun, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "front.json").unlink()
    assert "no trial has finished" in load_run(tmp_path / "run")._repr_html_()
    with pytest.raises(RunFolderError, match="no run"):
        load_run(tmp_path / "nowhere")


def test_the_module_of_a_model_computes_what_was_measured(run: SearchRun) -> None:
    task = ToyTask()
    inputs, targets = task.data("validation")
    for number in run.trials["number"]:
        best = run.best(int(number))
        module = best.model()
        assert not module.training
        with torch.no_grad():
            outputs = module(torch.tensor(inputs)).numpy()
        assert task.score(outputs, targets) == pytest.approx(best.result.metrics["accuracy"], abs=0.02)
        params = sum(tensor.numel() for name, tensor in module.named_parameters() if name.endswith("weight"))
        assert params <= sum(tensor.numel() for tensor in task.model().parameters())


def test_a_model_is_exported_and_its_lack_of_a_checkpoint_is_said(run: SearchRun, tmp_path: Path) -> None:
    best = run.best("smallest", max_drop=1.0)
    assert repr(best) == f"<{best.words}>"
    folder = best.export(tmp_path / "shipped")
    assert read_claims(folder).trial == best.number
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "trials" / f"{best.number:04d}" / CHECKPOINT).unlink()
    with pytest.raises(RunFolderError, match=f"cannot read a file of trial {best.number}: .*{CHECKPOINT}"):
        load_run(tmp_path / "run").best(best.number).model()
    with pytest.raises(InputError, match="no trial 99 in this run"):
        run.best(99)
