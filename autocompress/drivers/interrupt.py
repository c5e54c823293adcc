"""Ctrl-C, and being told to end (SIGTERM), while trials run."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED, TERMINATED = "interrupted", "terminated"
_REASONS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


@contextmanager
def on_interrupt(call: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM makes the call, with `INTERRUPTED` or `TERMINATED`; the next of either does what it ever did.

    Outside of the main thread, where Python hears no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _REASONS}
    # Ignored: started in the background, by nohup say, where Ctrl-C is meant for somebody else. None: not Python's to change.
    heard = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def as_before() -> None:
        for number, handler in heard.items():
            signal.signal(number, handler)

    def interrupted(number: int, _frame: object) -> None:
        as_before()
        call(_REASONS[signal.Signals(number)])

    for number in heard:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        as_before()
