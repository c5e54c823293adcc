"""The hypervolume of a front while it grows."""

from collections.abc import Sequence

from autocompress.front import dominates, hypervolume, missed
from autocompress.objective import Limit, Objective
from autocompress.result import Status, TrialResult


class HypervolumeSoFar:
    """`ParetoFront.hypervolume` of all results added so far, without making the front anew for each."""

    def __init__(self, objectives: Sequence[Objective], limits: Sequence[Limit], baseline: dict[str, float]) -> None:
        self._objectives, self._limits, self._baseline = objectives, limits, baseline
        self._front: list[dict[str, float]] = []
        self._value = 0.0

    def add(self, result: TrialResult) -> float:
        """The hypervolume with `result`, 0..1."""
        new = result.metrics
        if result.status is not Status.COMPLETE or missed(new, self._limits, self._baseline):
            return self._value
        if any(dominates(old, new, self._objectives) for old in self._front):
            return self._value
        self._front = [old for old in self._front if not dominates(new, old, self._objectives)] + [new]
        self._value = hypervolume(self._front, self._objectives, self._baseline)
        return self._value
