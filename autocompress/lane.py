"""The latency lane: while something is timed on a machine, nothing trains on it.

Two lock files in the machine's temporary folder, so that it holds among all processes of a user, whatever started
them, and a process that dies lets go by itself.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Lane:
    """Many may train (`shared`) or one may time (`exclusive`), never both.

    A training step takes microseconds to ask; who wants to time waits for the steps under way, and no new one starts
    before the timing is over.
    """

    def __init__(self, folder: Path | None = None) -> None:
        where = folder or Path(tempfile.gettempdir()) / f"autocompress-lane-{os.getuid()}"
        where.mkdir(parents=True, exist_ok=True)
        self._turnstile = (where / "turnstile").open("a")
        self._road = (where / "road").open("a")

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For one training step."""
        # Who waits to time holds the turnstile; without it a stream of overlapping steps would starve the timing.
        with _locked(self._turnstile.fileno(), fcntl.LOCK_SH):
            fcntl.flock(self._road, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._road, fcntl.LOCK_UN)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For one timing."""
        with _locked(self._turnstile.fileno(), fcntl.LOCK_EX), _locked(self._road.fileno(), fcntl.LOCK_EX):
            yield


@contextmanager
def _locked(file: int, how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
