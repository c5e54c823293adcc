"""What `pip install autocompress` brings is all of it: the built wheel, outside of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.documented import ROOT

PACKAGES = ("autocompress", "search_spaces")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", built)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    (wheel,) = built.glob("autocompress-*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(built / "site")
    return built / "site"


def files_in(folder: Path) -> set[str]:
    found = (file for name in PACKAGES for file in (folder / name).rglob("*"))
    return {str(file.relative_to(folder)) for file in found if file.is_file() and "__pycache__" not in file.parts}


def test_it_holds_every_file_of_the_packages(site: Path) -> None:
    assert files_in(site) == files_in(ROOT)
    assert "autocompress/report/front.html.tmpl" in files_in(site)


def test_an_experiment_of_ones_own_begins_anywhere(site: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import autocompress; print(autocompress.__file__)").startswith(str(site)), "not the checkout"
    run("-m", "autocompress", "init", "mine")
    assert "conv2" in run("-m", "autocompress", "check", "mine/experiment.py")
    options = ("--driver", "local", "--trials", "1", "--run", "run")
    assert "autocompress export run" in run("-m", "autocompress", "search", "mine/experiment.py", *options)
    assert (tmp_path / "mlflow.db").is_file()
