"""`benchmarks/models.py` and `benchmarks/static.py`, end to end on the toy network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.folder import RunFolder

ROOT = Path(__file__).parent.parent
EXPERIMENT = """\
from autocompress import Distill, Experiment, Finetune, LayerPolicy, Policy, Refit
from autocompress.testing import ToyTask


def space(trial, layers, target):
    hard = trial.suggest_categorical("hard", [False, True])
    one = LayerPolicy(weight_bits=2 if hard else 8, activation_bits=8, weight_sparsity=0.2)
    return Policy(
        channel_sparsity={"conv1": 0.7 if hard else 0.25},
        layers={layer.name: one for layer in layers},
        finetune=Finetune(steps=trial.suggest_int("steps", 4, 32)),
        distill=Distill(),
    )


# Of the two that come first one is within a point on any machine, and one has lost enough to be worth a refit.
# Without latency: the network is so small that students are no quicker on a busy machine.
experiment = Experiment(
    task=ToyTask(),
    space=space,
    objectives=("size_bytes", "accuracy"),
    refit=Refit(models=1, steps=24, share=0.5),
    sampler="random",
    start=[{"hard": False, "steps": 32}, {"hard": True, "steps": 4}],
)
"""


def benchmark(name: str, *arguments: str | Path, home: Path) -> str:
    """What `benchmarks/name` prints. It has a latency lane of its own: who waits for other tests uses up its worker-seconds."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(home)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_case_is_searched_once_and_its_picks_are_measured(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file = tmp_path / "toy.py"
    file.write_text(EXPERIMENT)
    asked = (file, "--folder", tmp_path / "out", "--worker-seconds", "30")
    printed = benchmark("models.py", *asked, home=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith("| toy")]
    assert [cells(row)[1] for row in rows] == ["onnxruntime", "openvino"]
    run = RunFolder(tmp_path / "out" / "toy")
    results = run.results()
    assert any(result.refit_of is not None for result in results)
    for row in rows:
        number, bytes_, smaller = cells(row)[2:5]
        assert int(number) in {result.number for result in results}
        assert int(bytes_.replace(",", "")) < 20_000
        assert float(smaller) > 2

    trained = run.baseline.joinpath("weights.safetensors").stat().st_mtime_ns
    again = benchmark("models.py", *asked, home=tmp_path)
    assert [line for line in again.splitlines() if line.startswith("| toy")] == rows
    assert run.results() == results
    assert run.baseline.joinpath("weights.safetensors").stat().st_mtime_ns == trained

    refit = next(result for result in results if result.refit_of is not None)
    printed = benchmark("static.py", run.path, "--pick", str(refit.number), home=tmp_path)
    assert f"toy, trial {refit.number}: " in printed
    assert "in floats: step 24" in printed
    assert "with its bits: step 24" in printed
    for name in ("ours", "its bits, by us"):
        assert f"time, {name} / quantize_static" in printed
        assert f"points of accuracy above quantize_static, {name}" in printed
