"""What the commands print for machines, and how little with `--quiet`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from autocompress.folder import RunFolder
from autocompress.opened import read_front
from tests.toy import call, write_experiment

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture) -> list[dict[str, Any]]:
    """Standard output, which is a JSON document a line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_search_tells_of_each_trial_and_then_of_the_front(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    file, run = write_experiment(tmp_path), tmp_path / "run"
    options = ("--run", run, "--trials", "2", "--driver", "local", "--tracking-uri", tracking_uri)
    assert call("search", file, *options, "--json") == 0
    *trials, last = told(capsys)
    assert [(line["event"], line["number"], line["status"]) for line in trials] == [
        ("trial", 0, "complete"),
        ("trial", 1, "complete"),
    ]
    first, second = RunFolder(run).results()
    assert trials[1]["metrics"] == second.metrics
    assert trials[1]["policy"] == second.summary
    assert [line["share"] for line in trials] == [0.5, 1]
    assert trials[0]["seconds_left"] > 0
    assert trials[1]["seconds_left"] == 0
    front = read_front(RunFolder(run))
    assert last["event"] == "front"
    assert last["run"] == str(run)
    assert [model["number"] for model in last["front"]] == [member.number for member in front.members]
    assert last["front"][0]["test"]["accuracy"] == front.test[front.members[0].number].accuracy
    assert last["recommended"] in {first.number, second.number}

    assert call("resume", run, "--trials", "3", "--driver", "local", "--json") == 0
    assert [line["event"] for line in told(capsys)] == ["trial", "front"]

    budget = ("--rivals", "random", "--worker-seconds", "1")
    assert call("baseline", run, *budget, "--driver", "local", "--json") == 0
    *trials, last = told(capsys)
    assert {line["rival"] for line in trials} == {"random"}
    assert (last["event"], last["rivals"][0]["rival"]) == ("standings", "random")
    assert last["rivals"][0]["worker_seconds"] >= 1


def test_the_front_as_json_is_the_front(toy_run: Path, capsys: Capture) -> None:
    assert call("front", toy_run, "--json") == 0
    (document,) = told(capsys)
    front = read_front(RunFolder(toy_run))
    assert document["hypervolume"] == front.hypervolume()
    assert document["uncompressed"]["metrics"] == front.baseline
    assert document["objectives"] == {"size_bytes": "min", "latency_ms": "min", "accuracy": "max"}
    smallest = next(model for model in document["front"] if model["number"] == document["picks"]["smallest"])
    assert smallest["times_smaller"] == front.baseline["size_bytes"] / smallest["metrics"]["size_bytes"]
    assert document["trials"] == {"all": 4, "complete": 4, "stopped": 0, "failed": 0, "trained_further": 0}


def test_an_error_is_a_line_on_standard_error_for_machines_too(tmp_path: Path, capsys: Capture) -> None:
    assert call("front", tmp_path, "--json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")


def test_export_and_verify_tell_what_holds(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert call("export", toy_run, "--max-drop", "1", "-o", out, "--json") == 0
    (document,) = told(capsys)
    assert document["verified"] is True
    assert document["claims"] == json.loads((out / "verify.json").read_text())
    assert {row["claim"] for row in document["checked"]} >= {"sha256", "size, bytes", "runs on onnxruntime alone"}
    shutil.copyfile(toy_run / "baseline/model.onnx", out / "model.onnx")
    assert call("verify", out, "--json") == 1
    (document,) = told(capsys)
    assert document["verified"] is False
    assert {row["claim"]: row["holds"] for row in document["checked"]}["sha256"] == "no"


def test_a_quiet_export_and_a_quiet_check_say_nothing(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert call("export", toy_run, "--max-drop", "1", "-o", tmp_path / "out", "--quiet") == 0
    assert call("check", toy_run / "experiment.py", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert call("check", toy_run / "experiment.py", "--json") == 0
    found = told(capsys)
    assert not any(line["warning"] for line in found)
    (layers,) = (line["layers"] for line in found if line["layers"])
    assert [layer["kind"] for layer in layers["layers"]][:1] == ["conv2d"]
