import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from autocompress import gpu
from autocompress.folder import RunFolder
from autocompress.opened import read_front
from autocompress.testing import ToyTask
from tests.toy import call, copy_run, write_experiment

Capture = pytest.CaptureFixture[str]


def test_help_names_every_command(capsys: Capture) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    for command in ("search", "resume", "front", "export", "verify", "sync", "check", "init"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE), command
    assert "..." not in shown.split("Commands:")[1], "every command is told in one whole line"


def test_search_shows_progress_the_front_and_what_to_do_next(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    file = write_experiment(tmp_path)
    run = tmp_path / "run"
    options = ("--run", run, "--trials", "2", "--sampler", "tpe", "--seed", "5", "--limit", "accuracy >= 0.2")
    assert call("search", file, *options, "--driver", "local", "--tracking-uri", tracking_uri) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\[2/2, 0:00:00 left\] trial \d+: .*x smaller, .*x (faster|slower), accuracy 0\.", out, re.MULTILINE)
    assert "the budget of 2 trials is used up" in out
    assert "uncompressed" in out
    assert "recommended" in out
    assert f"mlflow ui --backend-store-uri {tracking_uri}" in out
    assert f"autocompress export {run} --pick " in out
    assert [limit.text for limit in read_front(RunFolder(run)).limits] == ["accuracy >= 0.2"]

    assert call("resume", run, "--trials", "3", "--driver", "local", "--quiet") == 0
    out = capsys.readouterr().out
    assert "[3/3" not in out, "quiet"
    assert len(RunFolder(run).results()) == 3
    assert [limit.text for limit in read_front(RunFolder(run)).limits] == ["accuracy >= 0.2"], "the options stay"


def test_the_default_run_folder_and_store_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> None:
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, trials=1)
    before = (tmp_path / "mlflow.db").stat().st_mtime_ns
    assert call("search", "toy.py", "--driver", "local", "--quiet") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"toy-\d{8}-\d{6}", run.name)
    assert (tmp_path / "mlflow.db").stat().st_mtime_ns > before


def test_front_of_a_finished_run(toy_run: Path, capsys: Capture) -> None:
    assert call("front", toy_run) == 0
    out = capsys.readouterr().out
    front = read_front(RunFolder(toy_run))
    for member in front.members:
        assert re.search(rf"\b{member.number} │.*x smaller.*x (faster|slower).*±", out)
    assert f"{len(front.members)} on the front of 4 trials (0 failed)" in out
    assert str(toy_run / "front.html") in out


def test_front_says_what_binds_when_no_trial_meets_the_limits(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    file = write_experiment(tmp_path, trials=1, limits=("size <= 100 B",))
    run = tmp_path / "run"
    assert call("search", file, "--run", run, "--driver", "local", "--tracking-uri", tracking_uri, "--quiet") == 0
    out = capsys.readouterr().out
    assert "None of 1 trial meets size <= 100 B. The nearest:" in out
    assert "What binds: size <= 100 B" in out
    assert call("export", run, "-o", tmp_path / "out") == 2
    assert "no trial meets size <= 100 B; the nearest are 0: export one by its number" in capsys.readouterr().err


def test_a_search_without_a_single_complete_trial_ends_with_1(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    classes = """\
class Broken(ToyTask):
    def augment(self, inputs, generator):
        raise ValueError("augment is broken")
"""
    file = write_experiment(tmp_path, trials=1, classes=classes, task="Broken()")
    run = tmp_path / "run"
    assert call("search", file, "--run", run, "--driver", "local", "--tracking-uri", tracking_uri) == 1
    out = capsys.readouterr().out
    assert "trial 0: failed: ValueError: augment is broken" in out
    assert "No trial was completed" in out


def test_export_delivers_a_model_that_stands_alone(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert call("export", toy_run, "--pick", "smallest", "--max-drop", "1", "-o", out) == 0
    shown = capsys.readouterr().out
    assert "verified" in shown
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "model.onnx", "policy.json", "verify.json"]
    front = read_front(RunFolder(toy_run))
    smallest = min(front.members, key=lambda member: member.metrics["size_bytes"])
    claims = json.loads((out / "verify.json").read_text())
    assert claims["trial"] == smallest.number
    assert claims["size_bytes"] == (out / "model.onnx").stat().st_size == smallest.metrics["size_bytes"]
    assert claims["accuracy"]["accuracy"] == front.test[smallest.number].accuracy
    assert json.loads((out / "policy.json").read_text()) == smallest.policy.model_dump(mode="json")


def test_export_takes_the_best_there_is_when_all_lost_more_than_usual(tmp_path: Path, toy_run: Path, capsys: Capture) -> None:
    copy_run(toy_run, tmp_path / "run")
    stored = json.loads((tmp_path / "run/front.json").read_text())
    stored["baseline"]["accuracy"] = 1.2
    (tmp_path / "run/front.json").write_text(json.dumps(stored))
    assert call("export", tmp_path / "run", "--pick", "best", "-o", tmp_path / "out") == 0
    assert call("export", tmp_path / "run", "--pick", "best", "--max-drop", "0.01", "-o", tmp_path / "out") == 2
    assert "no model on the front is within 0.01" in capsys.readouterr().err


def test_export_of_a_trial_by_its_number(toy_run: Path, tmp_path: Path) -> None:
    number = RunFolder(toy_run).results()[-1].number
    assert call("export", toy_run, "--pick", str(number), "-o", tmp_path / "out") == 0
    exported = (tmp_path / "out/model.onnx").read_bytes()
    assert exported == (RunFolder(toy_run).trial(number) / "model.onnx").read_bytes()
    # The claim on the test split is what onnxruntime gives there.
    inputs, targets = ToyTask().data("test")
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    claims = json.loads((tmp_path / "out/verify.json").read_text())
    assert claims["accuracy"]["accuracy"] == pytest.approx(float(np.mean(outputs.argmax(axis=1) == targets)), abs=1e-9)


@pytest.fixture
def exported(toy_run: Path, tmp_path: Path) -> Path:
    assert call("export", toy_run, "--pick", "best", "--max-drop", "1", "-o", tmp_path / "out") == 0
    return tmp_path / "out"


def test_verify_holds(exported: Path, capsys: Capture) -> None:
    assert call("verify", exported) == 0
    out = capsys.readouterr().out
    assert re.search(r"size, bytes +[\d,]+ +[\d,]+ +yes", out)
    assert re.search(r"runs on onnxruntime alone +yes +yes +yes", out)
    assert re.search(r"accuracy, 256 test examples +0\.\d+ +0\.\d+ +yes", out)
    assert re.search(r"latency / uncompressed +", out)


def test_verify_finds_a_tampered_model(exported: Path, toy_run: Path, capsys: Capture) -> None:
    shutil.copyfile(toy_run / "baseline/model.onnx", exported / "model.onnx")
    assert call("verify", exported) == 1
    out = capsys.readouterr().out
    assert re.search(r"sha256 .* no", out)
    assert re.search(r"size, bytes .* no", out)
    assert "not what it claims to be" in out


def test_verify_finds_a_file_that_does_not_run(exported: Path, capsys: Capture) -> None:
    content = (exported / "model.onnx").read_bytes()
    (exported / "model.onnx").write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert call("verify", exported) == 1
    assert re.search(r"runs on onnxruntime alone +yes .* no", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("claim", "lie", "row"),
    [
        ("size_bytes", 1, "size, bytes"),
        ("download_bytes", 1, "download"),
        ("accuracy", {"accuracy": 0.999, "low": 0.9, "high": 1.0, "examples": 256}, "accuracy"),
        ("latency_ratio", 0.01, "latency"),
    ],
)
def test_verify_finds_a_claim_that_does_not_hold(exported: Path, capsys: Capture, claim: str, lie: object, row: str) -> None:
    claims = json.loads((exported / "verify.json").read_text())
    (exported / "verify.json").write_text(json.dumps({**claims, claim: lie}))
    assert call("verify", exported) == 1
    assert re.search(rf"^{row}.* no\s*$", capsys.readouterr().out, re.MULTILINE)


def test_verify_finds_the_run_folder_where_it_is_now(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy_run(toy_run, tmp_path / "first")
    assert call("export", tmp_path / "first", "--pick", "best", "--max-drop", "1", "-o", tmp_path / "out") == 0
    (tmp_path / "first").rename(tmp_path / "second")
    capsys.readouterr()
    assert call("verify", tmp_path / "out") == 2
    assert f"no run folder {tmp_path / 'first'}" in capsys.readouterr().err
    assert call("verify", tmp_path / "out", "--run", tmp_path / "second") == 0


def test_sync_writes_what_mlflow_missed(toy_run: Path, tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    assert call("sync", toy_run) == 0
    assert "MLflow has every trial" in capsys.readouterr().out
    # Another store knows nothing of it yet.
    copy_run(toy_run, tmp_path / "run")
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    noted = json.loads((tmp_path / "run/mlflow.json").read_text())
    (tmp_path / "run/mlflow.json").write_text(json.dumps({**noted, "key": "another run", "parent_run_id": None}))
    assert call("sync", tmp_path / "run", "--tracking-uri", f"sqlite:///{tmp_path / 'other.db'}") == 0
    assert "wrote 4 missing trials to MLflow" in capsys.readouterr().out


def test_init_gives_an_experiment_that_passes_check_and_runs(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    assert call("init", tmp_path / "mine") == 0
    file = tmp_path / "mine/experiment.py"
    assert f"autocompress search {file}" in capsys.readouterr().out
    assert call("check", file) == 0
    out = capsys.readouterr().out
    assert "warn" not in out
    assert re.search(r"conv2 +conv2d +64x64x3x3 +36,928 +2,359,296 +8 bits +conv2", out)
    assert "head is left alone: its channels are the outputs of the network" in out
    options = ("--driver", "local", "--trials", "2", "--tracking-uri", tracking_uri, "--quiet")
    assert call("search", file, "--run", tmp_path / "run", *options) == 0
    assert len(RunFolder(tmp_path / "run").results()) == 2
    assert call("init", tmp_path / "mine") == 2, "nothing is written over"


def test_check_tells_of_a_gpu_that_no_trial_would_use(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "is_left_idle", lambda gpus: gpus == 0)
    file = write_experiment(tmp_path)
    assert call("check", file) == 0
    assert "trials train on the CPU without gpus_per_trial" in " ".join(capsys.readouterr().out.split())
    file.write_text(file.read_text().replace("Experiment(task", "Experiment(gpus_per_trial='auto', task"))
    assert call("check", file) == 0
    assert "gpus_per_trial" not in capsys.readouterr().out


def test_check_warns_of_examples_in_two_splits(tmp_path: Path, capsys: Capture) -> None:
    classes = """\
class Leaky(ToyTask):
    def data(self, split):
        return super().data("train" if split == "test" else split)
"""
    file = write_experiment(tmp_path, classes=classes, task="Leaky()")
    assert call("check", file) == 0
    assert "warn data: 256 inputs are in both train and test" in capsys.readouterr().out


@pytest.mark.parametrize("driver", ["local", pytest.param("tune", marks=pytest.mark.ray)])
def test_ctrl_c_in_a_terminal_ends_with_the_front(tmp_path: Path, tracking_uri: str, driver: str) -> None:
    file = write_experiment(tmp_path, trials=200)
    code, screen = in_a_terminal(
        ["search", str(file), "--run", str(tmp_path / "run"), "--driver", driver, "--tracking-uri", tracking_uri],
        until=lambda: len(RunFolder(tmp_path / "run").results()) >= 2,
    )
    assert code == 0, screen[-2000:]
    count = len(RunFolder(tmp_path / "run").results())
    assert 2 <= count < 200
    assert re.search(r"\b[1-9]\d*/200 done", screen)
    for seen in ("running", "0 failed", "left", "best so far", "the search has ended: interrupted"):
        assert seen in screen, seen
    assert "recommended" in screen


def test_ctrl_c_before_the_first_trial_is_130(tmp_path: Path, tracking_uri: str) -> None:
    file = write_experiment(tmp_path, task="ToyTask(epochs=10_000)")
    code, screen = in_a_terminal(
        ["search", str(file), "--run", str(tmp_path / "run"), "--driver", "local", "--tracking-uri", tracking_uri],
        until=lambda: (tmp_path / "run/run.json").exists(),
    )
    assert code in (130, -signal.SIGINT)  # a shell shows 130 for both
    assert "interrupted" in screen
    assert "Traceback" not in screen


def in_a_terminal(arguments: list[str], *, until) -> tuple[int, str]:  # type: ignore[no-untyped-def]
    """Runs a command on a terminal, presses Ctrl-C when `until()`; the exit code and all that was shown."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "autocompress", *arguments]
    environment = {**os.environ, "COLUMNS": "150", "LINES": "40", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)
    os.set_blocking(ours, False)
    shown, deadline, pressed = b"", time.monotonic() + 240, False
    while process.poll() is None:
        assert time.monotonic() < deadline, shown[-2000:].decode()
        if not pressed and until():
            pressed = True
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
        shown += read(ours)
        time.sleep(0.05)
    shown += read(ours)
    os.close(ours)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode(errors="replace"))


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1_000_000)
    except OSError:
        return b""
