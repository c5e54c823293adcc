"""How the benchmarks time files beside each other: in turn, many times over, in several sessions."""

import time
from collections.abc import Callable, Mapping
from typing import Any

ROUNDS, SESSIONS = 40, 3
_SECONDS = 0.002

Session = Callable[[Any], Any]


def least_ms(makers: Mapping[str, Callable[[], Session]], inputs: Any) -> dict[str, float]:
    """The least milliseconds that each ever took for `inputs`; each is made anew for every session."""
    least = dict.fromkeys(makers, float("inf"))
    for _ in range(SESSIONS):
        sessions = {name: make() for name, make in makers.items()}
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                runs, began = 0, time.perf_counter()
                while runs < 2 or time.perf_counter() - began < _SECONDS:
                    start = time.perf_counter()
                    session(inputs)
                    least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
                    runs += 1
    return least
