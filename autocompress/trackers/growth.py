"""How far a search is after each of its trials."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.compute import HypervolumeSoFar, preparation_seconds
from autocompress.errors import InputError
from autocompress.folder import RunFolder
from autocompress.result import TrialResult
from autocompress.trackers.mlflow_run import MlflowRun

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """After `count` trials and `seconds` worker-seconds the front had this `hypervolume`; the last trial `ended` then.

    `ended` is in milliseconds since the epoch.
    """

    count: int
    seconds: float
    hypervolume: float
    ended: int


class Growth:
    """Follows the trials of `run` in the order they ended; `preparation` worker-seconds were spent before the first."""

    def __init__(self, run: MlflowRun, preparation: float) -> None:
        self._volume = HypervolumeSoFar(run.objectives, run.limits, run.baseline, run.scoring)
        self._count, self._seconds = 0, preparation

    def add(self, result: TrialResult) -> Point:
        self._count += 1
        self._seconds += result.compute
        return Point(self._count, self._seconds, self._volume.add(result), ended(result))


def ended(result: TrialResult) -> int:
    """When the trial ended, in milliseconds since the epoch."""
    return int((result.started + result.compute) * 1000)


def preparation_of(folder: RunFolder) -> float:
    """The worker-seconds spent on sensitivities and costs; 0 when their files are damaged: what is tracked is the trials."""
    try:
        return preparation_seconds(folder)
    except (InputError, OSError) as error:
        _log.warning("sensitivities and costs are left out of the compute: %s", error)
        return 0.0


def compute_of(results: Sequence[TrialResult], preparation: float) -> dict[str, float]:
    """The worker-seconds of a run by what they were spent on."""
    trials = sum(result.compute for result in results if result.refit_of is None)
    refits = sum(result.compute for result in results if result.refit_of is not None)
    return {"preparation": preparation, "trials": trials, "refits": refits}
