"""The latency lane as a Ray actor: all files of a search are timed on one machine, one after another.

Nothing trains there meanwhile: `measure_latency` sees to it with `autocompress.lane`.
"""

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from autocompress.drivers.endings import one_line
from autocompress.errors import TrialError
from autocompress.experiment import load_experiment
from autocompress.measure import Latency, Timer, measure_latency
from autocompress.target import MENUS, Target

# A timing takes seconds, but may have to queue behind those of all other trials.
_SECONDS = 900.0


class LatencyLane:
    """`target` is JSON. What it needs for a timing comes with each call: an actor that was restarted knows nothing more.

    A runtime that the experiment brings is registered by running its file.
    """

    def __init__(self, target: str, experiment_file: str) -> None:
        self._target = Target.from_json(target)
        if self._target.runtime not in MENUS:
            load_experiment(experiment_file)

    def ready(self) -> None:
        """Returns once the actor runs."""

    def time(self, model: bytes, baseline: bytes) -> Latency:
        return measure_latency(model, baseline, self._target)


def remote_timer(lane: Any, baseline: Any) -> Timer:
    """Times a file in the actor `lane`, against `baseline`, the uncompressed model's file in the object store.

    Raises `TrialError` when that fails: it is the trial that has no latency then.
    """

    def timer(model: bytes) -> Latency:
        try:
            latency: Latency = ray.get(lane.time.remote(model, baseline), timeout=_SECONDS)
        except GetTimeoutError as error:
            raise TrialError(f"the latency lane gave no answer within {_SECONDS:.0f} s") from error
        except RayError as error:
            raise TrialError(f"the latency lane failed: {reason(error)}") from error
        return latency

    return timer


def reason(error: BaseException) -> str:
    """Why something in a Ray process did not come to its end, in one line."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return one_line(f"{type(error.cause).__name__}: {error.cause}")
    text = str(error)
    for preamble in ("The actor is dead because ", "Worker exit detail: "):
        text = text.rpartition(preamble)[2]
    return one_line(f"worker died: {text}")
