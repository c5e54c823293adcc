"""Who hears of a search while it runs: the view, the record, the front file, and how they are told.

`autocompress.drivers.Listener` is what a driver talks to.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from autocompress.drivers import Listener
from autocompress.experiment import Experiment
from autocompress.folder import RunFolder, write_whole
from autocompress.front import FrontSoFar, ParetoFront
from autocompress.opened import read_front
from autocompress.pace import Earlier
from autocompress.result import Rung, TrialResult
from autocompress.search import Asked

_log = logging.getLogger(__name__)


class View(Listener, Protocol):
    """Who watches a run: hears of every trial, and of what else goes on."""

    def say(self, text: str) -> None:
        """One line of news."""

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""

    def measuring(self, what: str, done: int, total: int) -> None:
        """So many of something have been measured before the first trial."""

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        """The first trial of this session is about to start."""


class Silent:
    """A view that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def measuring(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        """Nothing."""

    def started(self, asked: Asked) -> None:
        """Nothing."""

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing."""

    def finished(self, result: TrialResult) -> None:
        """Nothing."""


class Views:
    """Tells several views."""

    def __init__(self, *views: View) -> None:
        self._views = views

    def say(self, text: str) -> None:
        for view in self._views:
            view.say(text)

    def warn(self, text: str) -> None:
        for view in self._views:
            view.warn(text)

    def measuring(self, what: str, done: int, total: int) -> None:
        for view in self._views:
            view.measuring(what, done, total)

    def begin(self, experiment: Experiment, baseline: dict[str, float], earlier: Earlier) -> None:
        for view in self._views:
            view.begin(experiment, baseline, earlier)

    def started(self, asked: Asked) -> None:
        for view in self._views:
            view.started(asked)

    def rung(self, number: int, rung: Rung) -> None:
        for view in self._views:
            view.rung(number, rung)

    def finished(self, result: TrialResult) -> None:
        for view in self._views:
            view.finished(result)


class Listeners:
    """Tells many listeners. Only the first, the record, may stop the search: what the others raise goes to the log."""

    def __init__(self, record: Listener, *others: Listener) -> None:
        self._record = record
        self._others = others

    def started(self, asked: Asked) -> None:
        _log.info("trial %d started", asked.number)
        self._record.started(asked)
        self._tell(lambda listener: listener.started(asked))

    def rung(self, number: int, rung: Rung) -> None:
        self._record.rung(number, rung)
        self._tell(lambda listener: listener.rung(number, rung))

    def finished(self, result: TrialResult) -> None:
        _log.info("trial %d: %s %s", result.number, result.status, result.error or result.summary)
        self._record.finished(result)
        self._tell(lambda listener: listener.finished(result))

    def _tell(self, news: Callable[[Listener], None]) -> None:
        for listener in self._others:
            try:
                news(listener)
            except Exception:  # noqa: BLE001  # whatever a listener does wrong, the trials are not to blame
                _log.exception("%s failed; the search goes on", type(listener).__name__)


class FrontFile:
    """A listener that keeps `front.json` up to date while the search runs; test scores of an earlier session stay."""

    def __init__(self, folder: RunFolder, experiment: Experiment, baseline: dict[str, float]) -> None:
        self._folder = folder
        self._so_far = FrontSoFar(
            experiment.parsed_objectives,
            experiment.parsed_limits,
            baseline,
            folder.results(),
            scoring=experiment.task.scoring,
        )
        self._before = read_front(folder) if folder.front_json.exists() else None
        self._is_stored = False

    def started(self, asked: Asked) -> None:
        """Nothing changes."""

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing changes."""

    def finished(self, result: TrialResult) -> None:
        before = _numbers(self._so_far.front)
        front = self._so_far.add(result)
        if not self._is_stored or _numbers(front) != before:
            self._store(front)

    def write(self) -> ParetoFront:
        """Stores and returns the front of all results so far."""
        return self._store(self._so_far.front)

    def _store(self, front: ParetoFront) -> ParetoFront:
        if (before := self._before) is not None:
            known = {member.number: before.test[member.number] for member in front.members if member.number in before.test}
            front = front.model_copy(update={"test": known, "baseline_test": before.baseline_test})
        write_whole(self._folder.front_json, front.to_json(indent=1))
        self._is_stored = True
        return front


def _numbers(front: ParetoFront) -> tuple[object, ...]:
    """What two fronts of one search differ in, if they differ."""
    members, nearest = ([result.number for result in results] for results in (front.members, front.nearest))
    return members, nearest, front.spread, front.doubtful
