"""How a search went: how its trials ended over time, what the time went into, and why trials failed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autocompress.result import Status, TrialResult

_BINS = 40
# Nothing ran for longer than that: a search that was interrupted, and resumed later.
_PAUSE_SECONDS = 300.0
# Stages of a trial (`TrialResult.seconds`) in the words of the report.
_STAGES = {"finetune": "train", "compress": "compress", "evaluate": "score", "export": "export", "measure": "measure"}
_NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d[\d.,]*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Ended:
    """Trials by state over time: `counts[state][i]` trials ended that way between `edges[i]` and `edges[i + 1]` seconds.

    Times in which the search was interrupted are left out.
    """

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Split:
    """Worker-seconds by what they went into, and how many workers there were: as many as ever ran trials at once."""

    seconds: dict[str, float]
    workers: int


@dataclass(frozen=True)
class Failure:
    """A reason, as the first of the `trials` that failed by it has put it; numbers in it may differ."""

    reason: str
    trials: tuple[int, ...]


def ended_over_time(results: Sequence[TrialResult]) -> Ended | None:
    """None without any trial."""
    if not results:
        return None
    pauses = _pauses(results)
    first = min(result.started for result in results)
    ends = [_without(pauses, _end(result)) - first for result in results]
    width = max(max(ends), 1e-9) / _BINS
    counts: dict[str, list[int]] = {}
    for result, end in zip(results, ends, strict=True):
        counts.setdefault(_state(result), [0] * _BINS)[min(int(end / width), _BINS - 1)] += 1
    edges = tuple(round(width * place, 2) for place in range(_BINS + 1))
    order = ("complete", "trained further", "stopped at a rung", "failed")
    return Ended(edges, {state: tuple(counts[state]) for state in order if state in counts})


def time_split(results: Sequence[TrialResult], preparation: float) -> Split | None:
    """`preparation` are the worker-seconds of sensitivities and costs. None without any trial."""
    if not results:
        return None
    spent: dict[str, float] = {"prepare": preparation} if preparation else {}
    for result in results:
        for stage, seconds in result.seconds.items():
            name = _STAGES.get(stage, stage)
            spent[name] = spent.get(name, 0.0) + seconds
        if not result.seconds and result.compute:
            spent["stopped early"] = spent.get("stopped early", 0.0) + result.compute
    workers = _at_once(results)
    lasted = max(map(_end, results)) - min(result.started for result in results)
    lasted -= sum(end - start for start, end in _pauses(results))
    busy = sum(result.compute for result in results)
    return Split(spent | {"idle": max(0.0, workers * lasted - busy)}, workers)


def failures_of(results: Sequence[TrialResult]) -> tuple[Failure, ...]:
    """The failed trials by reason, the most frequent first. Reasons that differ in numbers alone are one."""
    grouped: dict[str, list[TrialResult]] = {}
    for result in results:
        if result.status is Status.FAILED:
            grouped.setdefault(_NUMBER.sub("#", result.error or ""), []).append(result)
    found = [Failure(group[0].error or "no reason given", tuple(one.number for one in group)) for group in grouped.values()]
    return tuple(sorted(found, key=lambda failure: -len(failure.trials)))


def _state(result: TrialResult) -> str:
    if result.status is Status.COMPLETE:
        return "complete" if result.refit_of is None else "trained further"
    return "failed" if result.status is Status.FAILED else "stopped at a rung"


def _end(result: TrialResult) -> float:
    return result.started + result.compute


def _pauses(results: Iterable[TrialResult]) -> list[tuple[float, float]]:
    """The times, in seconds since the epoch, in which nothing ran for so long that nobody was searching."""
    found: list[tuple[float, float]] = []
    until: float | None = None
    for start, end in sorted((result.started, _end(result)) for result in results):
        if until is not None and start - until > _PAUSE_SECONDS:
            found.append((until, start))
        until = end if until is None else max(until, end)
    return found


def _without(pauses: Iterable[tuple[float, float]], at: float) -> float:
    return at - sum(end - start for start, end in pauses if end <= at)


def _at_once(results: Iterable[TrialResult]) -> int:
    """The most trials that ran at the same time."""
    changes = [(result.started, 1) for result in results] + [(_end(result), -1) for result in results]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return max(most, 1)
