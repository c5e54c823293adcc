"""Sizes, times and scores are those of the file."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from autocompress import measure
from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.errors import DivergedError
from autocompress.lane import Lane
from autocompress.measure import Here, checked_score, download_bytes, measure_latency, score, size_bytes, test_score
from autocompress.policy import Policy
from autocompress.runtimes.onnxruntime import export
from autocompress.target import Target
from autocompress.testing import ToyTask


def test_bytes_are_those_of_the_file(toy_baseline: Baseline, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(toy_baseline.file)
    assert size_bytes(toy_baseline.file) == (tmp_path / "model.onnx").stat().st_size
    compressed = zstandard.ZstdCompressor(level=19).compress(toy_baseline.file)
    assert download_bytes(toy_baseline.file) == len(compressed) < size_bytes(toy_baseline.file)


def test_a_model_is_as_fast_as_itself_and_a_pruned_one_is_faster(
    toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    cut = compress(toy_baseline.model(toy_task), Policy(channel_sparsity={"conv1": 0.75}), torch.tensor(toy_data["train"][0]))
    file = export(cut, torch.tensor(toy_data["train"][0][:4]))
    target = Target(batch_size=64)
    same = measure_latency(toy_baseline.file, toy_baseline.file, target)
    faster = measure_latency(file, toy_baseline.file, target)
    assert faster.ratio < 0.8 < same.ratio < 1.25
    assert faster.latency_ms < faster.baseline_latency_ms


def test_a_slow_moment_is_waited_out(toy_baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of both files take longer for a while, those of the smaller one most of all."""
    slow = iter([False] * 20 + [True] * 9 + [False] * 3 + [True] * 1000)

    def times(*_: object) -> tuple[float, float]:
        time.sleep(0.002)
        return (0.9, 1.5) if next(slow) else (0.3, 1.0)

    monkeypatch.setattr(measure, "_least_times", times)
    monkeypatch.setattr(measure, "_known", {})
    monkeypatch.setattr(measure, "_LEAST_PATIENCE", 0.0)
    monkeypatch.setattr(measure, "_PATIENCE", 1_000)  # a second for a millisecond
    timed = [measure_latency(toy_baseline.file, toy_baseline.file, Target()) for _ in range(2)]
    assert [latency.ratio for latency in timed] == [0.3, 0.3]
    list(zip(range(2), slow, strict=False))  # the last fast ones are over
    began = time.monotonic()
    assert measure_latency(toy_baseline.file, toy_baseline.file, Target()).ratio == pytest.approx(0.6)
    assert 0.9 < time.monotonic() - began < 3, "and not for ever"


def test_scores(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    assert score(toy_baseline.file, toy_data["validation"], toy_task, Here(Target())) == toy_baseline.metrics["accuracy"] > 0.85
    held_out = test_score(toy_baseline.file, toy_task, Here(Target()))
    assert held_out.examples == 256
    assert held_out.low < held_out.accuracy < held_out.high
    assert held_out.high - held_out.low < 0.12


def test_a_score_that_is_no_number_is_refused(toy_task: ToyTask) -> None:
    class Broken(ToyTask):
        def score(self, outputs: np.ndarray, targets: np.ndarray) -> float:
            return float("nan")

    with pytest.raises(DivergedError, match="the score is nan"):
        checked_score(Broken(), np.zeros((1, 4)), np.zeros(1))


TRAINER = """
import sys, time
from pathlib import Path
from autocompress.lane import Lane
lane, end = Lane(Path(sys.argv[1])), time.time() + 3
print("ready", flush=True)
while time.time() < end:
    with lane.shared():
        start = time.time()
        time.sleep(0.01)
        print(start, time.time(), flush=True)
"""


def test_nothing_trains_while_something_is_timed(tmp_path: Path) -> None:
    trainers = [
        subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for trainer in trainers:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
    lane, timed = Lane(tmp_path), []
    for _ in range(5):
        time.sleep(0.1)
        with lane.exclusive():
            start = time.time()
            time.sleep(0.1)
            timed.append((start, time.time()))
    trained = [
        (float(line.split()[0]), float(line.split()[1]))
        for trainer in trainers
        for line in trainer.communicate()[0].splitlines()
    ]
    assert len(trained) > 100  # they did go on in between
    overlaps = [(a, b) for a in timed for b in trained if a[0] < b[1] and b[0] < a[1]]
    assert overlaps == []


def test_a_dead_process_lets_go_of_the_lane(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", TRAINER.replace("lane.shared()", "lane.exclusive()").replace("0.01", "60"), str(tmp_path)],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    time.sleep(0.2)
    holder.kill()
    with Lane(tmp_path).shared():
        pass
    holder.communicate()
