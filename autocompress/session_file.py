"""Writes down where a search stands while it runs: see `Session`."""

import logging
import time
from typing import Any

from autocompress.errors import InputError
from autocompress.experiment import Experiment
from autocompress.folder import RunFolder, write_whole
from autocompress.pace import Earlier, Pace
from autocompress.result import Rung, TrialResult
from autocompress.search import Asked
from autocompress.session import Running, Session

_log = logging.getLogger(__name__)
# News that may come many times a second is written down so often at most, in seconds.
_PAUSE = 0.5


def seconds_searched(folder: RunFolder) -> float:
    """How much of the budget's minutes earlier sessions have used; 0 when that is not on record."""
    try:
        return Session.from_json(folder.session.read_bytes(), source=str(folder.session)).searched
    except (OSError, InputError):
        return 0.0


class SessionFile:
    """A view that keeps `session.json` up to date. What cannot be written goes to the log: the search does not wait for it."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.session
        self._searched, self._since = 0.0, 0.0
        self._pace: Pace | None = None
        self._running: dict[int, Running] = {}
        self._written = 0.0
        now = time.time()
        self._session = Session(began=now, written=now, doing="starting")
        self._write()

    def say(self, text: str) -> None:
        self._running.clear()  # what was under way has been dropped
        self._write(doing=text)

    def warn(self, text: str) -> None:
        """Nothing: it does not say what is being done."""

    def measuring(self, what: str, done: int, total: int) -> None:
        self._write(doing=f"measuring {what} {done}/{total}", now=done == total)

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        budget = experiment.budget
        self._searched, self._since = earlier.searched, time.monotonic()
        self._pace = Pace(experiment, self._since - earlier.searched, earlier.results, earlier.spent)
        bounds: dict[str, Any] = {"trials": budget.trials, "minutes": budget.minutes, "worker_seconds": budget.worker_seconds}
        refits = sum(result.refit_of is not None for result in earlier.results)
        known: dict[str, Any] = {"baseline": baseline, "scoring": experiment.task.scoring}
        self._write(doing="searching", searching=time.time(), refits=refits, **known, **bounds)

    def started(self, asked: Asked) -> None:
        if self._pace is not None:
            self._pace.started(asked.number, time.monotonic(), refit=asked.refit_of is not None)
        self._running[asked.number] = Running(number=asked.number, since=time.time(), refit_of=asked.refit_of)
        self._write()

    def rung(self, number: int, rung: Rung) -> None:
        running = self._running.get(number)
        if running is not None:
            update = {"rung": rung, "metrics": running.metrics | rung.metrics}
            self._running[number] = running.model_copy(update=update)
            self._write(now=False)

    def finished(self, result: TrialResult) -> None:
        self._running.pop(result.number, None)
        if self._pace is not None:
            self._pace.finished(result, time.monotonic())
        self._write(refits=self._session.refits + (result.refit_of is not None))

    def ended(self, reason: str) -> None:
        """Nothing more is searched for; what follows is to measure and to write down what was found."""
        self._running.clear()
        self._write(ended=reason)

    def _write(self, *, now: bool = True, **changes: Any) -> None:
        if not now and time.monotonic() - self._written < _PAUSE:
            return
        clock, running = time.time(), tuple(self._running.values())
        changes |= {"written": clock, "running": running, "ends": None}
        if self._session.ended is None and self._since:
            changes |= {"searched": self._searched + time.monotonic() - self._since}
        if (pace := self._pace) is not None:
            left = None if changes.get("ended", self._session.ended) else pace.seconds_left(time.monotonic())
            changes |= {"sampled": pace.sampled, "used": pace.used, "ends": None if left is None else clock + left}
        self._session = self._session.model_copy(update=changes)
        self._written = time.monotonic()
        try:
            write_whole(self._file, self._session.to_json())
        except OSError as error:
            _log.warning("cannot write %s: %s", self._file, error)
