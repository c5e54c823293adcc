"""What a search looks like while it runs: a live view on a terminal, one line a finished trial elsewhere."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress import words
from autocompress.experiment import Experiment
from autocompress.front import FrontSoFar, ParetoFront, Pick
from autocompress.listeners import Silent, View
from autocompress.objective import SCORE, Scoring
from autocompress.pace import Earlier, Pace
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked
from autocompress.summary import trial_summary

Heard = Callable[[dict[str, Any]], None]

_RUNNING_SHOWN = 8
_REFRESH_PER_SECOND = 4
_REFITTING = "training the best models further"


@contextmanager
def open_view(console: Console, *, quiet: bool, heard: Heard | None = None) -> Iterator[View]:
    """The view that suits `console`: warnings only when `quiet`, live on a terminal, plain lines elsewhere.

    With `heard` the view tells it of each finished trial (as `trial_summary` does) and shows nothing.
    """
    if heard is not None:
        yield MachineView(heard)
    elif quiet:
        yield QuietView()
    elif console.is_terminal:
        live = LiveView(console)
        with live.shown():
            yield live
    else:
        yield PlainView(console)


class Tally:
    """How far a search is: what has finished in this session and in `earlier` ones, its front, and its pace."""

    def __init__(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        results = earlier.results
        self.experiment, self.baseline = experiment, baseline
        self.pace = Pace(experiment, time.monotonic() - earlier.searched, results, earlier.spent)
        self.scoring = experiment.task.scoring
        objectives, limits = experiment.parsed_objectives, experiment.parsed_limits
        self._front = FrontSoFar(objectives, limits, baseline, results, scoring=self.scoring)
        self._ends = Counter(result.status for result in results)
        self._count = len(results)
        self._refitting = False

    def finished(self, result: TrialResult) -> None:
        """A trial is over."""
        self.pace.finished(result, time.monotonic())
        self._front.add(result)
        self._ends[result.status] += 1
        self._count += 1

    def started(self, asked: Asked) -> bool:
        """A trial begins; True when it is the first refit."""
        self.pace.started(asked.number, time.monotonic(), refit=asked.refit_of is not None)
        first_refit = asked.refit_of is not None and not self._refitting
        self._refitting = self._refitting or first_refit
        return first_refit

    def front(self) -> ParetoFront:
        return self._front.front

    def seconds_left(self) -> float | None:
        """See `Pace`."""
        return self.pace.seconds_left(time.monotonic())

    def share(self) -> float:
        """How much of the budget is used up, 0..1."""
        return self.pace.share(time.monotonic())

    def done_of(self) -> str:
        """``12/40``, or ``12`` when the trials are not counted; refits apart, and worker-seconds where they are."""
        budget, sampled = self.experiment.budget, self.pace.sampled
        return words.done(sampled, budget.trials, self._count - sampled, self.pace.used, budget.worker_seconds)

    def count(self, status: Status) -> int:
        return self._ends[status]


@dataclass
class _Running:
    """A trial under way: its latest rung, and what its rungs have said of its file."""

    refit_of: int | None = None
    rung: Rung | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def in_words(self, baseline: dict[str, float], scoring: Scoring) -> str:
        step, score = (None, "") if self.rung is None else (self.rung.step, scoring.words(self.rung.accuracy))
        return words.under_way(self.refit_of, step, score, self.sizes, baseline)


class QuietView(Silent):
    """Nothing but warnings, on standard error."""

    def warn(self, text: str) -> None:
        _line(Console(stderr=True), text)


class MachineView(QuietView):
    """Tells a program of each finished trial: `trial_summary`, how far the search is, and how long it will take."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._tally: Tally | None = None

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        self._tally = Tally(experiment, baseline, earlier)

    def started(self, asked: Asked) -> None:
        assert self._tally is not None
        self._tally.started(asked)

    def finished(self, result: TrialResult) -> None:
        tally = self._tally
        assert tally is not None
        tally.finished(result)
        left = tally.seconds_left()
        far: dict[str, Any] = {"share": tally.share(), "seconds_left": left, "on_front": len(tally.front().members)}
        if (rival := tally.experiment.settings.get("rival")) is not None:
            far["rival"] = rival
        self._heard({"event": "trial", **trial_summary(result, tally.baseline), **far})


class PlainView:
    """One line for each piece of news and each finished trial, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally: Tally | None = None
        self._tenths = 0

    def say(self, text: str) -> None:
        _line(self._console, text)

    def measuring(self, what: str, done: int, total: int) -> None:
        """A line for every tenth of them."""
        tenths = 10 * done // total
        if tenths != self._tenths:
            self.say(f"measuring {what} {done}/{total}")
        self._tenths = tenths % 10

    def warn(self, text: str) -> None:
        self.say(text)

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        self._tally = Tally(experiment, baseline, earlier)
        self.say(baseline_in_words(baseline, self._tally.scoring))
        if recorded := earlier.results:
            self.say(f"{len(recorded)} trials are on record; going on from there")

    def started(self, asked: Asked) -> None:
        assert self._tally is not None
        if self._tally.started(asked):
            self.say(_REFITTING)

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing: a line follows when the trial has finished."""

    def finished(self, result: TrialResult) -> None:
        tally = self._tally
        assert tally is not None
        tally.finished(result)
        parts = [tally.done_of(), *_early_ends(tally)]
        if (seconds := tally.seconds_left()) is not None:
            parts.append(f"{words.clock(seconds)} left")
        self.say(f"[{', '.join(parts)}] trial {result.number}: {result_in_words(result, tally.baseline, tally.scoring)}")


class LiveView:
    """A bar, the trials under way with their latest rung, and the front so far in short; news scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally: Tally | None = None
        self._running: dict[int, _Running] = {}
        self._measuring: tuple[str, int, int] | None = None
        self._best = ""
        self._stopped = ""
        self._news = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=_REFRESH_PER_SECOND, transient=True):
            yield

    def say(self, text: str) -> None:
        self._news, self._measuring = text, None
        self._running.clear()  # what was under way has been dropped
        _line(self._console, text)

    def warn(self, text: str) -> None:
        _line(self._console, text)

    def measuring(self, what: str, done: int, total: int) -> None:
        """Shows a bar until there is other news."""
        self._measuring = what, done, total

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        self._news, self._measuring, self._best, self._stopped = "", None, "", ""
        self._tally = Tally(experiment, baseline, earlier)
        _line(self._console, baseline_in_words(baseline, self._tally.scoring))
        if recorded := earlier.results:
            _line(self._console, f"{len(recorded)} trials are on record; going on from there")
            self._best = self._best_so_far(self._tally)

    def started(self, asked: Asked) -> None:
        assert self._tally is not None
        if self._tally.started(asked):
            _line(self._console, _REFITTING)
        self._running[asked.number] = _Running(refit_of=asked.refit_of)

    def rung(self, number: int, rung: Rung) -> None:
        running = self._running.setdefault(number, _Running())
        running.rung = rung
        running.sizes.update(rung.metrics)

    def finished(self, result: TrialResult) -> None:
        tally = self._tally
        assert tally is not None
        self._running.pop(result.number, None)
        tally.finished(result)
        self._best = self._best_so_far(tally)
        news = f"trial {result.number}: {result_in_words(result, tally.baseline, tally.scoring)}"
        if result.status is Status.FAILED:
            _line(self._console, news)
        if result.status is Status.STOPPED:
            self._stopped = news  # only the last: there may be hundreds

    def _best_so_far(self, tally: Tally) -> str:
        front = tally.front()
        pick = front.recommended()
        if pick is not None:
            gains, members = _gains(pick, tally.baseline, tally.scoring), len(front.members)
            return f"best so far: trial {pick.number}, {gains}; {members} on the front"
        return "no trial within the limits yet" if front.nearest else ""

    def _render(self) -> RenderableType:
        tally = self._tally
        if self._measuring is not None:
            what, done, total = self._measuring
            bar = Table.grid(padding=(0, 2))
            bar.add_row(ProgressBar(total=total, completed=done, width=30), f"measuring {what} {done}/{total}")
            return bar
        if tally is None:
            return Text(f"{self._news} ...") if self._news else Text("")
        head = Table.grid(padding=(0, 2))
        left = None if self._news else tally.seconds_left()
        failed, stopped = tally.count(Status.FAILED), tally.count(Status.STOPPED)
        head.add_row(
            ProgressBar(total=1.0, completed=tally.share(), width=30),
            f"{tally.done_of()} done",
            f"{len(self._running)} running",
            *([f"{stopped} stopped"] if stopped else []),
            Text(f"{failed} failed", style="red" if failed else ""),
            "" if left is None else f"{words.clock(left)} left",
        )
        rows: list[RenderableType] = [head]
        now = time.monotonic()
        for number, running in sorted(self._running.items())[:_RUNNING_SHOWN]:
            where = running.in_words(tally.baseline, tally.scoring)
            rows.append(Text(f"  trial {number}: {where} ({now - running.began:.0f} s)", style="dim"))
        if self._stopped:
            rows.append(Text(f"  {self._stopped}", style="dim", no_wrap=True, overflow="ellipsis"))
        if self._best:
            rows.append(Text(self._best, style="green"))
            rows.append(_ends_of(tally.front(), tally.baseline))
        if self._news:
            rows.append(Text(f"{self._news} ...", style="dim"))
        return Group(*rows)


def _ends_of(front: ParetoFront, baseline: dict[str, float]) -> Table:
    """The members of the front that can be picked by name, in its order; empty for a front of one."""
    named: dict[int, list[str]] = {}
    for how in get_args(Pick):
        if (member := front.pick(how)) is not None:
            named.setdefault(member.number, []).append(how)
    grid = Table.grid(padding=(0, 2))
    sides: tuple[Literal["left", "right"], ...] = ("left", "right", "right", "right", "left")
    for justify in sides:
        grid.add_column(justify=justify)
    for member in front.members if len(front.members) > 1 else ():
        if member.number in named:
            ratios, score = words.ratios(member.metrics, baseline), Text(front.scoring.words(member.metrics[SCORE]))
            grid.add_row(f"  trial {member.number}", *ratios, score, ", ".join(named[member.number]), style="dim")
    return grid


def baseline_in_words(baseline: dict[str, float], scoring: Scoring) -> str:
    """``uncompressed: 420.0 kB, 0.80 ms, accuracy 0.9820``."""
    size, latency = baseline["size_bytes"] / 1000, baseline["latency_ms"]
    return f"uncompressed: {size:,.1f} kB, {words.milliseconds(latency)}, {scoring.words(baseline[SCORE])} (validation)"


def result_in_words(result: TrialResult, baseline: dict[str, float], scoring: Scoring) -> str:
    """What came of a trial, in one line."""
    if result.status is Status.COMPLETE:
        further = "" if result.refit_of is None else f"trial {result.refit_of} trained further: "
        return f"{further}{_gains(result, baseline, scoring)} ({result.summary})"
    if result.status is Status.STOPPED:
        return f"stopped{_last_rung(result, baseline, scoring)} ({result.summary})"
    return f"failed: {result.error}"


def _gains(result: TrialResult, baseline: dict[str, float], scoring: Scoring) -> str:
    return words.gains(scoring.words(result.metrics[SCORE]), result.metrics, baseline)


def _last_rung(result: TrialResult, baseline: dict[str, float], scoring: Scoring) -> str:
    """`` at step 50: 31.0x smaller, 3.40x faster, accuracy 0.4100``; what a rung does not know is left out."""
    if not result.rungs:
        return ""
    last = result.rungs[-1]
    sizes = {name: value for rung in result.rungs for name, value in rung.metrics.items()}
    return f" at step {last.step}: {words.gains(scoring.words(last.accuracy), sizes, baseline)}"


def _early_ends(tally: Tally) -> list[str]:
    """``3 stopped``, ``1 failed``, where there are any."""
    ended = [(tally.count(Status.STOPPED), "stopped"), (tally.count(Status.FAILED), "failed")]
    return [f"{number} {how}" for number, how in ended if number]


def _line(console: Console, text: str) -> None:
    # Neither wrapped nor coloured: a line of a log is a line.
    console.print(text, highlight=False, markup=False, soft_wrap=True)
