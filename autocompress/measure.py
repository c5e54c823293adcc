"""What an exported file weighs, how long it takes and how well it does: measured on the file itself."""

import hashlib
import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import zstandard

from autocompress import nested
from autocompress.errors import DivergedError, TrialError
from autocompress.front import TestScore
from autocompress.lane import Lane
from autocompress.nested import Nested
from autocompress.runtimes import Session, made_up, runtime_of
from autocompress.target import Target
from autocompress.task import Task

# About one session in sixty is a third slower for its whole life; the best of several is not. Slow models have fewer.
_SESSIONS, _FEWEST_SESSIONS = 5, 3
_SECONDS = 2.0
# The minimum of interleaved runs is steady to 0.4 %; what else the machine does only ever adds time.
_PAIRS = 24
_SECONDS_A_SESSION = 1.0
# A core of a virtual machine is slow as long as a neighbour uses its other half, small integer models most of all. When the
# uncompressed model takes that much longer than it can, a better moment is waited for: so many times as long as it takes,
# within bounds in seconds.
SLOW = 1.08
_PATIENCE, _LEAST_PATIENCE, _MOST_PATIENCE = 10_000, 0.2, 3.0
# What it can take is found out in so many sessions; what once was possible need not be for ever.
_FIRST_SESSIONS = 20
_FORGETTING = 1.005
_SCORE_BATCH = 256
_REASON_LENGTH = 120


@dataclass(frozen=True)
class Latency:
    """Least milliseconds for one batch, of a file and of the uncompressed model in the same interleaved sessions.

    Their `ratio` holds when the machine's speed drifts from trial to trial.
    """

    latency_ms: float
    baseline_latency_ms: float

    @property
    def ratio(self) -> float:
        return self.latency_ms / self.baseline_latency_ms


class Place(Protocol):
    """Where the files of one target are run: this process, or a machine that has the device."""

    def time(self, model: bytes, baseline: bytes) -> Latency:
        """As `measure_latency`."""

    def outputs(self, model: bytes, inputs: Nested) -> Nested:
        """The outputs of the file for inputs (n, ...)."""


# By the name of the target.
Places = Mapping[str, Place]


@dataclass(frozen=True)
class Here:
    """Files of `target`, which has no further ones, run in this process."""

    target: Target
    lane: Lane = field(default_factory=Lane)

    def time(self, model: bytes, baseline: bytes) -> Latency:
        return measure_latency(model, baseline, self.target, lane=self.lane)

    def outputs(self, model: bytes, inputs: Nested) -> Nested:
        with self.lane.shared():
            return outputs_of(model, inputs, self.target)


def here(target: Target) -> Places:
    """All of the target's files run in this process."""
    lane = Lane()
    return {place.name: Here(place, lane) for place in target.each}


def size_bytes(model: bytes) -> int:
    """The bytes of the file."""
    return len(model)


def download_bytes(model: bytes) -> int:
    """The bytes of the file under zstd, level 19."""
    return len(zstandard.ZstdCompressor(level=19).compress(model))


def measure_latency(model: bytes, baseline: bytes, target: Target, *, lane: Lane | None = None) -> Latency:
    """Times the file `model` against the file `baseline` on `target`, run by run in turn, while nothing trains here.

    The inputs are made up, of the shapes the file asks for.
    """
    runtime = runtime_of(target)
    key = hashlib.sha256(baseline).digest(), target
    known = _known.get(key)
    with (lane or Lane()).exclusive():
        began, ours, theirs = time.monotonic(), math.inf, math.inf
        wanted = _FIRST_SESSIONS if known is None else _SESSIONS
        for done in itertools.count(1):
            times = _least_times(runtime.load(model, target), runtime.load(baseline, target), target)
            ours, theirs = min(ours, times[0]), min(theirs, times[1])
            spent = time.monotonic() - began
            enough = done >= wanted or (done >= _FEWEST_SESSIONS and spent > _SECONDS)
            if enough and (known is None or theirs <= SLOW * known or spent > _patience(known)):
                break
    _known[key] = theirs if known is None else min(_FORGETTING * known, theirs)
    return Latency(latency_ms=ours, baseline_latency_ms=theirs)


# The least milliseconds of an uncompressed file in this process.
_known: dict[tuple[bytes, Target], float] = {}


def _patience(known: float) -> float:
    return min(max(_PATIENCE * known / 1e3, _LEAST_PATIENCE), _MOST_PATIENCE)


def outputs_of(model: bytes, inputs: Nested, target: Target) -> Nested:
    """The outputs of the file for inputs (n, ...), computed by its runtime."""
    session = runtime_of(target).load(model, target)
    return nested.join([session(batch) for batch in nested.split(inputs, _SCORE_BATCH)])


def score(model: bytes, data: tuple[Nested, Nested], task: Task, place: Place) -> float:
    """The task's score of the file. Raises `DivergedError` when it is not finite."""
    inputs, targets = data
    return checked_score(task, place.outputs(model, inputs), targets)


def checked_score(task: Task, outputs: Nested, targets: Nested) -> float:
    """The task's score as a finite float. Raises `DivergedError`, and `TrialError` when it is no number."""
    given: object = task.score(outputs, targets)
    try:
        value = float(given if not isinstance(given, str) else None)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TrialError(f"score() must give a number, given {given!r}"[:_REASON_LENGTH]) from error
    if not np.isfinite(value):
        raise DivergedError(f"the score is {value}")
    return value


def test_score(model: bytes, task: Task, place: Place) -> TestScore:
    """The score of the file on the test split, with its confidence interval."""
    inputs, targets = task.data("test")
    outputs = place.outputs(model, inputs)
    low, high = task.interval(outputs, targets)
    return TestScore(accuracy=checked_score(task, outputs, targets), low=low, high=high, examples=nested.count(targets))


test_score.__test__ = False  # type: ignore[attr-defined]  # the name begins like a test; pytest must not collect it


def _least_times(ours: Session, theirs: Session, target: Target) -> tuple[float, float]:
    example = made_up(ours.inputs, target.batch_size)
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
