"""The time limit of a trial that runs in this process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from autocompress.drivers.endings import overdue
from autocompress.errors import TrialError

# Python drops an exception that falls into a callback of the garbage collector, and code may catch it: it comes again.
_AGAIN_SECONDS = 1.0


class Alarm:
    """Raises `TrialError` within `running` when that takes longer than `minutes`; None: never.

    Python code is interrupted wherever it is, native code when it returns. Only in the main thread: others hear no signals.
    """

    def __init__(self, minutes: float | None) -> None:
        self._minutes = minutes

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._minutes is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGALRM, self._ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 60 * self._minutes, _AGAIN_SECONDS)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what must not be broken off in the middle."""
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            yield
        finally:
            if left:
                signal.setitimer(signal.ITIMER_REAL, left, _AGAIN_SECONDS)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        assert self._minutes is not None
        raise TrialError(overdue(self._minutes))
