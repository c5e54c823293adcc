"""Notices that the Ray which this process has joined is gone.

Ray's own calls hang then, deaf to signals, until it ends the process after a minute, in its own words.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

_log = logging.getLogger(__name__)

_LOOK_SECONDS, _ANSWER_SECONDS = 2.0, 5.0
# A head that keeps its state elsewhere (Ray's fault tolerance) may come back: Ray waits a minute. A node's own part does not.
_HEAD_PATIENCE, _NODE_PATIENCE = 45.0, 10.0


@contextmanager
def watched(words: Callable[[str], str], leave: Callable[[str], None] | None = None) -> Iterator[None]:
    """Ends this process with exit code 2, and what `words` makes of the reason, when Ray is gone for good meanwhile.

    `leave` is called instead, from a thread, if given: nobody can call the thread back that is in one of Ray's calls.
    """
    over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(_checks(), over, words, leave or _leave), name="autocompress-watch", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


# What to look at, what is said of it, and for how many seconds it may be away.
_Check = tuple[Callable[[], bool], str, float]


def waiting_for_ray() -> Callable[[], None]:
    """What returns at once while Ray is there, and else when it is again, or never: see `watched`.

    To be called before a trial is blamed for what is no fault of its own.
    """
    checks = _checks()

    def wait() -> None:
        while not all(answers() for answers, _, _ in checks):
            time.sleep(_LOOK_SECONDS)

    return wait


def _checks() -> list[_Check]:
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    here = context.get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)  # type: ignore[no-untyped-call]
    part, head = node["RayletSocketName"], (host, int(port))
    return [
        (lambda: _answers(socket.AF_UNIX, part), "its processes on this machine have ended", _NODE_PATIENCE),
        (lambda: _answers(socket.AF_INET, head), f"its head at {host}:{port} does not answer", _HEAD_PATIENCE),
    ]


def _watch(checks: list[_Check], over: threading.Event, words: Callable[[str], str], leave: Callable[[str], None]) -> None:
    seen = [time.monotonic()] * len(checks)
    while not over.wait(_LOOK_SECONDS):
        for place, (answers, what, patience) in enumerate(checks):
            if answers():
                seen[place] = time.monotonic()
            elif time.monotonic() - seen[place] > patience and not over.is_set():
                leave(words(what))
                return


def _answers(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(address)
        except (TimeoutError, BlockingIOError):  # a full queue of a local socket is the latter
            return family == socket.AF_UNIX  # it is there, and busy
        except OSError:
            return False
    return True


def _leave(words: str) -> None:
    _log.error(words)
    sys.stderr.write(f"error: {words}\n")
    sys.stderr.flush()
    os._exit(2)
