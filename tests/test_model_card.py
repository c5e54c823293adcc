"""The card of an exported model: its head is YAML, its code runs, its figures are those that were claimed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from autocompress.folder import RunFolder
from autocompress.notebook import load_run
from autocompress.opened import open_run
from autocompress.verify import read_claims
from tests.toy import call


@pytest.fixture(scope="module")
def exported(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("exported")
    assert call("export", toy_run, "--pick", "best", "--max-drop", "1", "-o", out, "--quiet") == 0
    return out


def head_of(card: str) -> dict[str, Any]:
    """What a model hub reads."""
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_head_says_what_it_is_and_what_it_reaches(exported: Path) -> None:
    card, claims = (exported / "README.md").read_text(), read_claims(exported)
    head = head_of(card)
    assert head["library_name"] == "onnxruntime"
    assert {"autocompress", "quantized", "onnx"} <= set(head["tags"])
    assert "license" not in head
    assert "# license:" in card, "left open, and said so"
    assert head["metrics"] == ["accuracy", "size", "latency"]
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert (result["task"]["name"], result["dataset"]["name"]) == ("ToyTask", "toy")
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "test": claims.accuracy.accuracy,
        "validation": claims.validation_accuracy,
        "size of the file, bytes": (exported / "model.onnx").stat().st_size,
        "latency on onnxruntime-cpu, ms": claims.latency_ms,
    }


def test_its_code_runs_as_it_is_without_autocompress(exported: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (exported / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    code += "print(outputs[0].shape)\nimport sys\nassert 'autocompress' not in sys.modules"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=exported, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 4)"


def test_its_command_verifies_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"^```sh\n(.*?)\n```", (exported / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(exported)
    assert command.startswith("autocompress ")
    assert call(*command.split()[1:]) == 0


def test_it_tells_what_was_done_and_measured_where(toy_run: Path, exported: Path) -> None:
    card, claims, run = (exported / "README.md").read_text(), read_claims(exported), open_run(toy_run)
    result = next(one for one in RunFolder(toy_run).results() if one.number == claims.trial)
    machine = result.environment
    assert machine is not None
    assert f"| file | {claims.size_bytes:,} bytes | {claims.baseline_size_bytes:,} bytes |" in card
    assert f"95 % confidence interval {claims.accuracy.low:.4f} to {claims.accuracy.high:.4f}" in card
    assert f"onnxruntime {machine.versions['onnxruntime']}" in card
    assert f"{machine.cores} cores" in card
    widths = result.policy.widths(run.baseline().layers, run.experiment().target.menu)
    for layer in run.baseline().layers:
        bits = result.policy.layers[layer.name].weight_bits
        row = rf"^\| {layer.name} \| {layer.kind} \| {widths[layer.name][1]} of \d+ \| {bits} bits \| 8 bits \|"
        assert re.search(row, card, re.MULTILINE), layer.name
    assert "accuracy >= baseline - 0.6" in card.replace("&gt;", ">").replace("\\", "")
    assert str(toy_run.parent) not in card, "no path of the machine"


def test_a_notebook_exports_the_same_card(toy_run: Path, exported: Path, tmp_path: Path) -> None:
    number = json.loads((exported / "verify.json").read_text())["trial"]
    folder = load_run(toy_run).best(number).export(tmp_path / "out")
    assert (folder / "README.md").read_text() == (exported / "README.md").read_text()
