"""One search for several targets: each policy is exported for all of them, timed at each, and can be delivered for each."""

import json
from pathlib import Path

import onnx
import pytest

from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.opened import Options, open_run
from autocompress.report import front_table
from autocompress.report.axes import axes_of
from autocompress.result import Status
from autocompress.run import resume, run_search
from autocompress.trackers.mlflow_note import note
from autocompress.trackers.mlflow_trial import final_metrics
from autocompress.verify import read_claims
from tests.toy import SPACE, call, write_experiment

pytest.importorskip("openvino")
OPENVINO, THREADS = "openvino-cpu", "onnxruntime-cpu:2threads"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("targets")
    file = write_experiment(folder, space=SPACE.replace("steps=8", "steps=4"), trials=2)
    run_search(
        file,
        folder / "run",
        driver=LocalDriver(),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        options=Options(targets=("onnxruntime", OPENVINO, THREADS), limits=(f"latency/{OPENVINO} <= 9 * baseline",)),
    )
    return folder / "run"


def test_every_trial_is_measured_at_each(run: Path) -> None:
    opened = open_run(run)
    base, results = opened.baseline().metrics, opened.folder.results()
    assert [result.status for result in results] == [Status.COMPLETE] * 2
    for result in results:
        for name in ("latency_ms", f"latency_ms/{OPENVINO}", f"latency_ms/{THREADS}"):
            ratio = result.metrics[name.replace("_ms", "_ratio")]
            assert result.metrics[name] == pytest.approx(ratio * base[name])
        assert result.metrics[f"size_bytes/{THREADS}"] == result.metrics["size_bytes"]
        files = [run / f"trials/{result.number:04d}" / name for name in ("model.onnx", "openvino-model.onnx")]
        assert [file.stat().st_size for file in files] == [
            result.metrics["size_bytes"],
            result.metrics[f"size_bytes/{OPENVINO}"],
        ]
    assert [objective.metric for objective in opened.front().objectives] == [
        *("size_bytes", "latency_ms", f"latency_ms/{OPENVINO}", f"latency_ms/{THREADS}", "accuracy")
    ]
    assert opened.front().test


def test_the_report_shows_each(run: Path) -> None:
    opened = open_run(run)
    front = opened.front()
    headings = [str(column.header) for column in front_table(front, opened.baseline().layers).columns]
    assert headings[2:5] == ["latency", f"latency\n{OPENVINO}", f"latency\n{THREADS}"]
    axes = axes_of(front)
    assert axes[f"latency_ms/{OPENVINO}"] == {"name": f"Latency, {OPENVINO}", "unit": "ms", "scale": 1.0}
    assert OPENVINO in (run / "front.html").read_text()
    rows = [line for line in note(front, {}).splitlines() if "x smaller" in line and line.startswith("|")]
    assert len(rows) == len(front.members)
    assert all(f"x on {OPENVINO}" in row and f"x on {THREADS}" in row for row in rows)


def test_mlflow_has_the_gain_at_each(run: Path) -> None:
    opened = open_run(run)
    for result in opened.folder.results():
        found = {metric.key: metric.value for metric in final_metrics(result, opened.baseline().metrics)}
        assert found["times_faster"] == pytest.approx(1 / result.metrics["latency_ratio"])
        assert found[f"times_faster/{OPENVINO}"] == pytest.approx(1 / result.metrics[f"latency_ratio/{OPENVINO}"])


def test_it_is_resumed_for_the_same_targets(run: Path) -> None:
    resume(run, driver=LocalDriver(), trials=3)
    assert all(f"latency_ms/{OPENVINO}" in result.metrics for result in RunFolder(run).results())


@pytest.mark.parametrize("target", [None, OPENVINO])
def test_the_file_for_each_is_delivered_and_verified(
    run: Path, target: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = open_run(run).front().members[0].number
    chosen = [] if target is None else ["--target", target]
    assert call("export", str(run), "--pick", str(number), "-o", str(tmp_path), *chosen) == 0, capsys.readouterr()
    claims = read_claims(tmp_path)
    assert claims.target.name == (target or "onnxruntime-cpu")
    result = next(result for result in open_run(run).folder.results() if result.number == number)
    size = "size_bytes" if target is None else f"size_bytes/{target}"
    assert claims.size_bytes == result.metrics[size] == (tmp_path / "model.onnx").stat().st_size
    assert claims.baseline_accuracy is not None
    output = capsys.readouterr().out
    assert "verified" in output
    assert f"runs on {claims.target.runtime} alone" in output


def test_a_target_that_was_not_searched_for_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", str(run), "--target", "torch", "-o", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "no target of this run 'torch-cpu'" in error
    assert OPENVINO in error


def test_check_tries_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.parent / "toy.py"
    assert call("check", str(file), "--target", "onnxruntime", "--target", "openvino") == 0
    output = capsys.readouterr().out
    assert "export, onnxruntime" in output
    assert "export, openvino" in output
    assert f"autocompress search {file} --target onnxruntime --target openvino" in output


def test_a_cost_table_is_that_of_the_first(run: Path, tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    arguments = ("--run", str(run), "--driver", "local", "--policies", "2", "-o", str(costs))
    assert call("profile", str(run.parent / "toy.py"), *arguments) == 0
    assert json.loads(costs.read_text())["target"] == {
        "runtime": "onnxruntime",
        "device": "cpu",
        "batch_size": 1,
        "threads": 1,
        "also": [],
    }


def test_both_files_are_graphs_that_others_can_read(run: Path) -> None:
    for name in ("model.onnx", "openvino-model.onnx"):
        onnx.checker.check_model(onnx.load(run / "trials/0000" / name))
