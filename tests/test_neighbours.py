"""An experiment is given the modules beside it: its own, as they are now, and never in place of what is installed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress import neighbours
from autocompress.errors import ExperimentError
from autocompress.experiment import load_experiment

EXPERIMENT = """
import numpy
from autocompress import Experiment
from autocompress.testing import ToyTask
from {module} import WHERE

experiment = Experiment(task=ToyTask(), space=lambda *_: None, settings={{"where": WHERE, "numpy": numpy.__version__}})
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Whoever loaded experiments before may have left a `space` as well.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not neighbours.is_preferred(entry)])
    monkeypatch.setattr(neighbours, "_folders", [])
    monkeypatch.setattr(neighbours, "_brought", set())
    for name in ("space", "package", "package.space", "other", "script", "linked"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def experiment_in(folder: Path, module: str = "space", **files: str) -> Path:
    for name, content in {module.replace(".", "/"): f"WHERE = {folder.name!r}", **files}.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    file = folder / "experiment.py"
    file.write_text(EXPERIMENT.format(module=module))
    return file


def where(file: Path) -> str:
    return load_experiment(file).settings["where"]


@pytest.mark.parametrize("module", ["space", "package.space"])
def test_a_second_experiment_has_its_own_neighbours(module: str, tmp_path: Path) -> None:
    one, two = (experiment_in(tmp_path / name, module) for name in ("one", "two"))
    assert [where(file) for file in (one, two, one)] == ["one", "two", "one"]


@pytest.mark.parametrize("module", ["space", "package.space"])
def test_what_was_edited_is_read_anew(module: str, tmp_path: Path) -> None:
    file = experiment_in(tmp_path, module)
    assert where(file) == tmp_path.name
    (tmp_path / f"{module.replace('.', '/')}.py").write_text("WHERE = 'edited, and longer than it was before'")
    assert where(file).startswith("edited")


def test_also_what_a_cell_of_a_notebook_has_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = experiment_in(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("space")
    (tmp_path / "space.py").write_text("WHERE = 'edited, and longer than it was before'")
    assert where(file).startswith("edited")


def test_what_is_installed_stays_and_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a package that lies where the experiment does, as the source of an installed one may."""
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    package, numpy = __import__("linked"), sys.modules["numpy"]
    file = experiment_in(tmp_path, numpy="__version__ = 'of the experiment'", other="import linked")
    file.write_text("import other\n" + file.read_text())
    for _ in range(2):
        assert load_experiment(file).settings["numpy"] == numpy.__version__
    assert sys.modules["linked"] is package
    assert sys.modules["numpy"] is numpy


def test_a_module_that_is_being_imported_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = experiment_in(tmp_path)
    (tmp_path / "script.py").write_text(
        f"from autocompress.experiment import load_experiment\nexperiment = load_experiment({str(file)!r})"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert __import__("script").experiment.settings["where"] == tmp_path.name


def test_one_that_fails_is_read_anew_when_it_is_mended(tmp_path: Path) -> None:
    file = experiment_in(tmp_path, space="WHERE = 1 / 0")
    with pytest.raises(ExperimentError, match="division by zero"):
        load_experiment(file)
    (tmp_path / "space.py").write_text("WHERE = 'mended, and longer than it was before'")
    assert where(file).startswith("mended")
