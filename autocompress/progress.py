"""What a search looks like while it runs: a live view on a terminal, one line a finished trial elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress.experiment import Budget, Experiment
from autocompress.front import ParetoFront
from autocompress.listeners import Silent, View
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked

_RUNNING_SHOWN = 8
_REFRESH_PER_SECOND = 4


@contextmanager
def open_view(console: Console, *, quiet: bool) -> Iterator[View]:
    """The view that suits `console`: warnings only when `quiet`, live on a terminal, plain lines elsewhere."""
    if quiet:
        yield QuietView()
    elif console.is_terminal:
        live = LiveView(console)
        with live.shown():
            yield live
    else:
        yield PlainView(console)


@dataclass
class Tally:
    """How far a search is: what has finished in this session and `before`; when it began, and when its first trial did."""

    experiment: Experiment
    baseline: dict[str, float]
    results: list[TrialResult]
    before: int
    began: float = field(default_factory=time.monotonic)
    first_trial: float | None = None

    def started(self) -> None:
        """A trial begins. The pace is counted from the first: before it, workers were started."""
        if self.first_trial is None:
            self.first_trial = time.monotonic()

    @property
    def failed(self) -> int:
        return sum(result.status is Status.FAILED for result in self.results)

    @property
    def budget(self) -> Budget:
        return self.experiment.budget

    def front(self) -> ParetoFront:
        return ParetoFront.of(self.results, self.experiment.parsed_objectives, self.experiment.parsed_limits, self.baseline)

    def seconds_left(self) -> float | None:
        """Until the trials or the minutes are used up, whichever is first, at the pace so far; None when nobody can tell."""
        ends = []
        now = time.monotonic()
        here = len(self.results) - self.before
        if self.budget.minutes is not None:
            ends.append(self.budget.minutes * 60 - (now - self.began))
        if self.budget.trials is not None and self.first_trial is not None and here:
            ends.append(max(0, self.budget.trials - len(self.results)) * (now - self.first_trial) / here)
        return max(0.0, min(ends)) if ends else None

    def share(self) -> float:
        """How much of the budget is used up, 0..1."""
        shares = [0.0]
        if self.budget.trials is not None:
            shares.append(len(self.results) / self.budget.trials)
        if self.budget.minutes is not None:
            shares.append((time.monotonic() - self.began) / (self.budget.minutes * 60))
        return min(1.0, max(shares))

    def done_of(self) -> str:
        """``12/40``, or ``12`` when only the minutes count."""
        return f"{len(self.results)}/{self.budget.trials}" if self.budget.trials is not None else str(len(self.results))


class QuietView(Silent):
    """Nothing but warnings, on standard error."""

    def warn(self, text: str) -> None:
        _line(Console(stderr=True), text)


class PlainView:
    """One line for each piece of news and each finished trial, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally: Tally | None = None

    def say(self, text: str) -> None:
        _line(self._console, text)

    def warn(self, text: str) -> None:
        self.say(text)

    def begin(self, experiment: Experiment, baseline: dict[str, float], recorded: Sequence[TrialResult]) -> None:
        self._tally = Tally(experiment, baseline, list(recorded), len(recorded))
        self.say(baseline_in_words(baseline))
        if recorded:
            self.say(f"{len(recorded)} trials are on record; going on from there")

    def started(self, asked: Asked) -> None:
        assert self._tally is not None
        self._tally.started()

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing: a line follows when the trial has finished."""

    def finished(self, result: TrialResult) -> None:
        tally = self._tally
        assert tally is not None
        tally.results.append(result)
        failed = f", {tally.failed} failed" if tally.failed else ""
        left = f", {_clock(seconds)} left" if (seconds := tally.seconds_left()) is not None else ""
        self.say(f"[{tally.done_of()}{failed}{left}] trial {result.number}: {result_in_words(result, tally.baseline)}")


class LiveView:
    """A bar, the trials under way with their latest rung, and the best so far; news scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally: Tally | None = None
        self._running: dict[int, tuple[float, Rung | None]] = {}
        self._best = ""
        self._news = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=_REFRESH_PER_SECOND, transient=True):
            yield

    def say(self, text: str) -> None:
        self._news = text
        self._running.clear()  # what was under way has been dropped
        _line(self._console, text)

    def warn(self, text: str) -> None:
        _line(self._console, text)

    def begin(self, experiment: Experiment, baseline: dict[str, float], recorded: Sequence[TrialResult]) -> None:
        self._news = ""
        self._tally = Tally(experiment, baseline, list(recorded), len(recorded))
        _line(self._console, baseline_in_words(baseline))
        if recorded:
            _line(self._console, f"{len(recorded)} trials are on record; going on from there")
            self._best = self._best_so_far(self._tally)

    def started(self, asked: Asked) -> None:
        assert self._tally is not None
        self._tally.started()
        self._running[asked.number] = (time.monotonic(), None)

    def rung(self, number: int, rung: Rung) -> None:
        began, _ = self._running.get(number, (time.monotonic(), None))
        self._running[number] = (began, rung)

    def finished(self, result: TrialResult) -> None:
        tally = self._tally
        assert tally is not None
        self._running.pop(result.number, None)
        tally.results.append(result)
        self._best = self._best_so_far(tally)
        if result.status is Status.FAILED:
            _line(self._console, f"trial {result.number}: {result_in_words(result, tally.baseline)}")

    def _best_so_far(self, tally: Tally) -> str:
        front = tally.front()
        pick = front.recommended()
        if pick is not None:
            members = len(front.members)
            return f"best so far: trial {pick.number}, {_gains(pick, tally.baseline)}; {members} on the front"
        return "no trial within the limits yet" if front.nearest else ""

    def _render(self) -> RenderableType:
        tally = self._tally
        if tally is None:
            return Text(f"{self._news} ...") if self._news else Text("")
        head = Table.grid(padding=(0, 2))
        left = None if self._news else tally.seconds_left()
        head.add_row(
            ProgressBar(total=1.0, completed=tally.share(), width=30),
            f"{tally.done_of()} done",
            f"{len(self._running)} running",
            Text(f"{tally.failed} failed", style="red" if tally.failed else ""),
            "" if left is None else f"{_clock(left)} left",
        )
        rows: list[RenderableType] = [head]
        now = time.monotonic()
        for number, (began, rung) in sorted(self._running.items())[:_RUNNING_SHOWN]:
            where = f"accuracy {rung.accuracy:.4f} after {rung.step} steps" if rung else "compressing"
            rows.append(Text(f"  trial {number}: {where} ({now - began:.0f} s)", style="dim"))
        if self._best:
            rows.append(Text(self._best, style="green"))
        if self._news:
            rows.append(Text(f"{self._news} ...", style="dim"))
        return Group(*rows)


def baseline_in_words(baseline: dict[str, float]) -> str:
    """``uncompressed: 420.0 kB, 0.80 ms, accuracy 0.9820``."""
    size, latency = baseline["size_bytes"] / 1000, baseline["latency_ms"]
    return f"uncompressed: {size:,.1f} kB, {latency:.3g} ms, accuracy {baseline['accuracy']:.4f} (validation)"


def result_in_words(result: TrialResult, baseline: dict[str, float]) -> str:
    """What came of a trial, in one line."""
    if result.status is Status.COMPLETE:
        return f"{_gains(result, baseline)} ({result.summary})"
    if result.status is Status.STOPPED:
        return f"stopped ({result.summary})"
    return f"failed: {result.error}"


def _gains(result: TrialResult, baseline: dict[str, float]) -> str:
    metrics = result.metrics
    smaller, faster = baseline["size_bytes"] / metrics["size_bytes"], baseline["latency_ms"] / metrics["latency_ms"]
    return f"{smaller:.1f}x smaller, {faster:.2f}x faster, accuracy {metrics['accuracy']:.4f}"


def _line(console: Console, text: str) -> None:
    # Neither wrapped nor coloured: a line of a log is a line.
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
