"""What an exported file weighs, how long it takes and how well it does: measured on the file itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard

from autocompress.errors import DivergedError
from autocompress.front import TestScore
from autocompress.lane import Lane
from autocompress.runtimes import Session, runtime_of
from autocompress.target import Target
from autocompress.task import Array, Task

# About one session in sixty is a third slower for its whole life; the median of three is not.
_SESSIONS = 3
# The minimum of interleaved runs is steady to 0.4 %; what else the machine does only ever adds time.
_PAIRS = 40
_SECONDS_A_SESSION = 1.0
_SCORE_BATCH = 256


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch, of a file and of the uncompressed model in the same interleaved session.

    `ratio` is the median over sessions of least time by least time: it holds when the machine's speed drifts.
    """

    latency_ms: float
    baseline_latency_ms: float
    ratio: float


Timer = Callable[[bytes], Latency]


def size_bytes(model: bytes) -> int:
    """The bytes of the file."""
    return len(model)


def download_bytes(model: bytes) -> int:
    """The bytes of the file under zstd, level 19."""
    return len(zstandard.ZstdCompressor(level=19).compress(model))


def measure_latency(model: bytes, baseline: bytes, target: Target, *, lane: Lane | None = None) -> Latency:
    """Times the file `model` against the file `baseline` on `target`, run by run in turn, while nothing trains here.

    The inputs are noise of the shape the file asks for.
    """
    runtime = runtime_of(target)
    with (lane or Lane()).exclusive():
        rounds = [_least_times(runtime.load(model, target), runtime.load(baseline, target), target) for _ in range(_SESSIONS)]
    ratio = float(np.median([ours / theirs for ours, theirs in rounds]))
    return Latency(
        latency_ms=min(ours for ours, _ in rounds), baseline_latency_ms=min(theirs for _, theirs in rounds), ratio=ratio
    )


def outputs_of(model: bytes, inputs: Array, target: Target) -> Array:
    """The outputs of the file for inputs (n, ...), computed by its runtime."""
    session = runtime_of(target).load(model, target)
    return np.concatenate([session(inputs[at : at + _SCORE_BATCH]) for at in range(0, len(inputs), _SCORE_BATCH)])


def score(model: bytes, data: tuple[Array, Array], task: Task, target: Target) -> float:
    """The task's score of the file. Raises `DivergedError` when it is not finite."""
    inputs, targets = data
    return checked_score(task, outputs_of(model, inputs, target), targets)


def checked_score(task: Task, outputs: Array, targets: Array) -> float:
    """The task's score as a finite float. Raises `DivergedError`."""
    value = float(task.score(outputs, targets))
    if not np.isfinite(value):
        raise DivergedError(f"the score is {value}")
    return value


def test_score(model: bytes, task: Task, target: Target) -> TestScore:
    """The score of the file on the test split, with its confidence interval."""
    inputs, targets = task.data("test")
    outputs = outputs_of(model, inputs, target)
    low, high = task.interval(outputs, targets)
    return TestScore(accuracy=checked_score(task, outputs, targets), low=low, high=high, examples=len(targets))


test_score.__test__ = False  # type: ignore[attr-defined]  # the name begins like a test; pytest must not collect it


def _least_times(ours: Session, theirs: Session, target: Target) -> tuple[float, float]:
    example = _noise(ours, target)
    for _ in range(3):
        ours(example)
        theirs(example)
    least = [float("inf"), float("inf")]
    deadline = time.monotonic() + _SECONDS_A_SESSION
    pairs = 0
    while pairs < _PAIRS and (pairs < 5 or time.monotonic() < deadline):
        for index, session in enumerate((ours, theirs)):
            start = time.perf_counter()
            session(example)
            least[index] = min(least[index], time.perf_counter() - start)
        pairs += 1
    return least[0] * 1e3, least[1] * 1e3


def _noise(session: Session, target: Target) -> Array:
    return np.random.default_rng(0).standard_normal((target.batch_size, *session.example_shape)).astype(np.float32)
