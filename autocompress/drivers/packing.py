"""How many trials share a GPU: by what the trials so far took of one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autocompress.result import GpuMemory, Status, TrialResult

# Policies differ in what they need, and torch's blocks of memory come apart: so much more than the most that was seen.
_MARGIN = 0.25
# Ray counts a GPU in parts of this size; beyond so many trials on one it is not memory that they lack.
_PARTS, _MOST = 10_000, 100


@dataclass(frozen=True)
class Slice:
    """What a trial is given: `gpus` of Ray, and of the memory of its GPU the share `cap`, 0..1, for torch's tensors."""

    gpus: float
    cap: float = 1.0


ALONE = Slice(1.0)


def slice_for(seen: Iterable[GpuMemory]) -> Slice | None:
    """The smallest equal part of a GPU in which the hungriest of these trials would have had room, with a margin.

    GPUs of several sizes share by the smallest. The libraries of CUDA take their part in every process, beyond what torch can
    be held to: as much as was in use outside of torch when least was, for others share a GPU by then. None when nothing was
    seen.
    """
    known = list(seen)
    if not known:
        return None
    total = min(one.total for one in known)
    wanted, outside = (1 + _MARGIN) * max(one.peak for one in known), min(one.outside for one in known)
    fit = min(_MOST, int(total // max(1.0, wanted + outside)))
    if fit < 2:
        return ALONE
    gpus = math.floor(_PARTS / fit) / _PARTS
    return Slice(gpus, max(gpus - outside / total, wanted / total))


class Packing:
    """What of a GPU the next trial is given; `gpus` is `Experiment.gpus_per_trial`.

    With "auto" the first trial has a GPU to itself, and no other runs, until one was complete: its memory is measured. Later
    ones share by the most that any has taken so far. Without a GPU (`there` is False) there is nothing to share.
    """

    def __init__(self, gpus: float | Literal["auto"], *, there: bool, results: Iterable[TrialResult] = ()) -> None:
        self._fixed: Slice | None = None
        if gpus != "auto":
            self._fixed = Slice(gpus, min(1.0, gpus) if gpus else 1.0)
        elif not there:
            self._fixed = Slice(0.0)
        self._worst: GpuMemory | None = None  # of each figure, whichever trial it was
        self._slice: Slice | None = self._fixed
        for result in results:
            self.learn(result)

    @property
    def next(self) -> Slice:
        """What the next trial is given."""
        return self._slice or ALONE

    @property
    def alone(self) -> Slice:
        """What a trial is given for which its part was too little."""
        if self._fixed is not None and not 0 < self._fixed.gpus < 1:
            return self._fixed
        return ALONE

    @property
    def probing(self) -> bool:
        """True until it is known what trials need: then one runs at a time."""
        return self._slice is None

    def learn(self, result: TrialResult) -> None:
        """Takes what a trial took. One that has failed may have done so before it took much."""
        if self._fixed is not None or result.status is not Status.COMPLETE:
            return
        if result.gpu is None:  # its torch knows no GPU: nothing can be measured there
            self._slice = self._slice or ALONE
            return
        seen = [one for one in (self._worst, result.gpu) if one is not None]
        self._worst = GpuMemory(
            peak=max(one.peak for one in seen), outside=min(one.outside for one in seen), total=min(one.total for one in seen)
        )
        self._slice = slice_for([self._worst])
