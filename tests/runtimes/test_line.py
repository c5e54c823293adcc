"""The whole line on every runtime: a search, an exported file with the text that runs it, and its verification."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.folder import RunFolder
from autocompress.run import run_search
from tests.toy import call, write_experiment

SPACE = """\
def space(trial, layers, target):
    share = trial.suggest_float("share", 0.0, 0.75)
    eight = 8 if 8 in target.menu.activation_bits else None
    return Policy(
        channel_sparsity={group.name: share for group in layers.groups},
        layers={layer.name: LayerPolicy(weight_bits=4, activation_bits=eight) for layer in layers},
        finetune=Finetune(steps=8),
    )
"""
BOARD = """\
from autocompress.runtimes import Runtime, register
from autocompress.runtimes.onnxruntime import OnnxSession, export
from autocompress.target import Menu

menu = Menu(weight_bits=(4, None), activation_bits=(None,), weight_sparsity=False, channel_multiple=4)
register("board", Runtime(export=export, load=OnnxSession), menu)
"""
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def experiment(folder: Path, runtime: str, classes: str = "") -> Path:
    file = write_experiment(folder, space=SPACE, trials=2, classes=classes)
    text = file.read_text().replace("import Budget", "import Target, Budget")
    file.write_text(text.replace("limits=", f"target=Target(runtime={runtime!r}), limits="))
    return file


@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_from_search_to_verified_file(
    runtime: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_search(experiment(tmp_path, runtime), tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    results = RunFolder(tmp_path / "run").results()
    assert [str(result.status) for result in results] == ["complete", "complete"], [result.error for result in results]
    out = tmp_path / "out"
    assert call("export", tmp_path / "run", "--pick", "best", "-o", out, "--max-drop", "1") == 0
    usage = (out / "README.md").read_text().partition(f"It needs {runtime} and numpy, nothing else:\n\n```python\n")[2]
    code = usage.partition("```")[0]
    code += "assert [len(part) for part in outputs] in ([1], [4])"  # of torch a tensor (1, 4), of others a list of arrays
    subprocess.run([sys.executable, "-I", "-c", code], cwd=out, check=True)
    assert call("verify", out) == 0
    assert f"runs on {runtime} alone" in capsys.readouterr().out


def test_a_runtime_that_the_experiment_brings(tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every process of a search on Ray knows it, the one that times files too."""
    file = experiment(tmp_path, "board", BOARD)
    run_search(file, tmp_path / "run", driver=TuneDriver(concurrency=1), tracking_uri=tracking_uri)
    results = RunFolder(tmp_path / "run").results()
    assert [str(result.status) for result in results] == ["complete", "complete"], [result.error for result in results]
    assert call("export", tmp_path / "run", "--pick", "best", "-o", tmp_path / "out", "--max-drop", "1") == 0
    assert call("verify", tmp_path / "out") == 2
    assert "verify cannot run files of the runtime 'board'" in capsys.readouterr().err
