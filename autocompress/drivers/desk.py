"""The desk: stands between Tune, which knows trials by ids of its own, and the search, which knows them by number."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from autocompress.drivers import Listener
from autocompress.drivers.endings import out_of_memory, overdue, unmeasured
from autocompress.drivers.packing import Packing, Slice
from autocompress.errors import RunFolderError
from autocompress.layer import Layers
from autocompress.result import Environment, Rung, Status, TrialResult
from autocompress.search import Asked, Search


@dataclass
class _Running:
    asked: Asked
    since: float = field(default_factory=time.time)
    rungs: list[Rung] = field(default_factory=list)
    environment: Environment | None = None
    announced: bool = False
    begun: bool = False
    late: bool = False
    again: bool = False
    on_gpu: bool = False


class Desk:
    """Every method takes Tune's id of a trial. When one fails, `failure` says why, and the desk is closed.

    `before_blame` is called before a trial is taken for failed: it may wait until that is known to be the trial's own fault.
    `most` says how many trials with such a slice may run at once. One for which its GPU has too little memory is asked for
    again, once, with a GPU to itself; meanwhile no other is begun, or there might always be one on every GPU.
    """

    def __init__(
        self,
        search: Search,
        listener: Listener,
        layers: Layers,
        *,
        packing: Packing,
        most: Callable[[Slice], int],
        trial_minutes: float | None = None,
        before_blame: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_blame = before_blame
        self._packing = packing
        self._most = most
        self._again: deque[_Running] = deque()
        self._trial_minutes = trial_minutes
        self._search = search
        self._listener = listener
        self._layers = layers
        self._running: dict[str, _Running] = {}
        self.closed = False
        self.failure: Exception | None = None

    @property
    def waiting(self) -> bool:
        """True when trials under way may yet change what is asked for next."""
        return bool(self._running or self._again) and not self.closed

    def ask(self, trial_id: str) -> dict[str, Any] | None:
        """A trial to start, see `Trainer`; None when there is none now, or no more: see `waiting`."""
        with self._guarded():
            running = None if self.closed else self._next()
            if running is not None:
                self._running[trial_id] = running
                asked, part = running.asked, self._packing.alone if running.again else self._packing.next
                running.on_gpu = part.gpus > 0
                return {
                    "number": asked.number,
                    "policy": asked.policy.to_json(),
                    "seed": asked.seed,
                    "refit_of": asked.refit_of,
                    "checkpoint_sha256": asked.checkpoint_sha256,
                    "gpus": part.gpus,
                    "gpu_cap": part.cap,
                }
        return None

    def _next(self) -> _Running | None:
        if any(running.again and not running.begun for running in self._running.values()):
            return None
        if self._again:
            return self._again.popleft()
        if len(self._running) >= (1 if self._packing.probing else self._most(self._packing.next)):
            return None
        asked = self._search.ask()
        return None if asked is None else _Running(asked)

    def started(self, trial_id: str) -> None:
        with self._guarded():
            self._running[trial_id].begun, self._running[trial_id].late = True, False
            self._announce(self._running[trial_id])

    def rung(self, trial_id: str, reported: dict[str, Any]) -> bool:
        """Takes what a trial has reported at a rung; False when it is to be stopped there."""
        with self._guarded():
            running = self._running[trial_id]
            if "environment" in reported:
                running.environment = Environment.from_json(reported["environment"], source="a worker's environment")
            rung = Rung.from_json(reported["rung"], source="a worker's rung")
            # A trial begun again on another worker passes the same rungs again, after which it went on before.
            if not running.rungs or rung.step > running.rungs[-1].step:
                running.rungs.append(rung)
                self._listener.rung(running.asked.number, rung)
                return self._search.report(running.asked.number, rung)
        return True

    def result(self, trial_id: str, reported: dict[str, Any]) -> None:
        """Takes what a trial has reported at its end, and leaves out what it has reported at a rung."""
        with self._guarded():
            if "unkept" in reported:
                raise RunFolderError(reported["unkept"])
            if "error" in reported:
                self._finish(trial_id, self._unmeasured(trial_id, Status.FAILED, reported["error"]))
            elif "result" in reported:
                running = self._running[trial_id]
                result = TrialResult.from_json(reported["result"], source="a worker's result")
                result = result.model_copy(update={"refit_of": running.asked.refit_of})
                if result.out_of_memory and running.on_gpu and not running.again:
                    self._again.append(replace(self._running.pop(trial_id), again=True, begun=False))
                else:
                    self._packing.learn(result)
                    self._finish(trial_id, out_of_memory(result) if running.again and result.out_of_memory else result)

    def ended(self, trial_id: str) -> None:
        """A trial that has given no result until now was stopped on purpose."""
        with self._guarded():
            if trial_id in self._running and not self.closed:
                self._finish(trial_id, self._unmeasured(trial_id, Status.STOPPED, None))

    def late(self, trial_id: str) -> None:
        """A trial took longer than it may: its worker is being killed."""
        with self._guarded():
            self._running[trial_id].late = True

    def lost(self, trial_id: str, error: str) -> None:
        with self._guarded():
            # Who ends the search may have ended the workers too, as a machine does that shuts down: no fault of the trials.
            if trial_id in self._running and not self.closed:
                why = overdue(self._trial_minutes) if self._running[trial_id].late and self._trial_minutes else error
                self._finish(trial_id, self._unmeasured(trial_id, Status.FAILED, why))

    def interrupt(self, reason: str) -> None:
        self._search.stop(reason)
        self.closed = True

    def _announce(self, running: _Running) -> None:
        if not running.announced:
            running.announced = True
            self._listener.started(running.asked)

    def _finish(self, trial_id: str, result: TrialResult) -> None:
        if result.status is Status.FAILED:
            self._before_blame()
        self._announce(self._running.pop(trial_id))
        self._listener.finished(result)
        self._search.tell(result)

    def _unmeasured(self, trial_id: str, status: Status, error: str | None) -> TrialResult:
        running = self._running[trial_id]
        return unmeasured(
            running.asked,
            self._layers,
            status,
            started=running.since,
            error=error,
            rungs=running.rungs,
            environment=running.environment,
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised again by the driver; Tune would take it for a trial's
            self.failure = self.failure or error
            self.closed = True
