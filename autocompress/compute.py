"""What a search and its rivals had found after how much compute."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import pandas as pd

from autocompress.errors import RunFolderError
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront, dominates, hypervolume, missed, unusable
from autocompress.noun import Noun
from autocompress.objective import SCORE, USUAL, Limit, Objective, Scoring
from autocompress.result import Status, TrialResult
from autocompress.tables import CostTable, Sensitivity

# What the run itself is called among its rivals; the rivals that search for nothing: the uncompressed model, trained
# further, and the one that is only quantised.
OURS = "this run"
UNCOMPRESSED, INT8 = "uncompressed", "int8"


class HypervolumeSoFar:
    """`ParetoFront.hypervolume` of all results added so far, without making the front anew for each.

    It falls only when a further seed of a refit shows that the seeds before had been lucky.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        baseline: dict[str, float],
        scoring: Scoring = USUAL,
    ) -> None:
        self._objectives, self._limits, self._baseline, self._scoring = objectives, limits, baseline, scoring
        self._results: list[TrialResult] = []
        self._front: list[dict[str, float]] = []
        self._value = 0.0

    def add(self, result: TrialResult) -> float:
        """The hypervolume with `result`, 0..1."""
        new = result.metrics
        if result.status is not Status.COMPLETE or unusable(new, self._objectives, self._limits):
            return self._value
        self._results.append(result)
        if result.refit_of is not None:  # the seeds of one trial are judged together
            front = ParetoFront.of(self._results, self._objectives, self._limits, self._baseline, self._scoring)
            self._front = [member.metrics for member in front.members]
        elif missed(new, self._limits, self._baseline) or any(dominates(old, new, self._objectives) for old in self._front):
            return self._value
        else:
            self._front = [old for old in self._front if not dominates(new, old, self._objectives)] + [new]
        self._value = hypervolume(self._front, self._objectives, self._baseline)
        return self._value


class Standing(Noun):
    """A rival beside the run, both judged by the objectives, limits and uncompressed model of the run.

    `hypervolume` is what the rival came to with its `worker_seconds`, `ours` what the run had after as many, `reached`
    the worker-seconds after which the run had what the rival came to, and kept it: None when it never had. `accuracy` is
    the best of the rival's complete trials, None without any.
    """

    rival: str
    trials: int
    worker_seconds: float
    hypervolume: float
    ours: float
    reached: float | None
    accuracy: float | None

    @property
    def share(self) -> float | None:
        """`reached` as a share of the rival's worker-seconds; None when it was not, or when there was nothing to reach."""
        if self.reached is None or not self.hypervolume or not self.worker_seconds:
            return None
        return self.reached / self.worker_seconds


def preparation_seconds(folder: RunFolder) -> float:
    """The worker-seconds that went into sensitivities and costs. Raises `InputError` when their files are damaged."""
    seconds = 0.0
    if folder.sensitivity.exists():
        seconds += Sensitivity.from_json(folder.sensitivity.read_bytes(), source=str(folder.sensitivity)).seconds
    if folder.costs.exists():
        seconds += CostTable.from_json(folder.costs.read_bytes(), source=str(folder.costs)).seconds
    return seconds


def used_seconds(folder: RunFolder) -> float:
    """The worker-seconds of a run: its preparation and all its trials, whatever became of them."""
    return preparation_seconds(folder) + sum(result.compute for result in folder.results())


def rivals_in(folder: RunFolder) -> list[RunFolder]:
    """The folders of the rivals that have a record, by name."""
    found = [RunFolder(path) for path in sorted(folder.baselines.iterdir())] if folder.baselines.is_dir() else []
    return [rival for rival in found if rival.record.exists()]


def curves(folder: RunFolder) -> pd.DataFrame:
    """The hypervolume of the front so far against cumulative compute, for a run (`OURS`) and each of its rivals but `INT8`.

    Columns `searcher`, `worker_seconds`, `hypervolume`, `number`: a row for each trial, in the order they ended, after a
    row without a number where the first trial began. All are judged by the objectives, limits and uncompressed model of
    the run. Raises `RunFolderError` when the run has no front yet.
    """
    front = _front(folder)
    rows = [
        (name, seconds, volume, number)
        for name, there in [(OURS, folder), *((rival.path.name, rival) for rival in _searchers(folder))]
        for seconds, volume, number in _curve(there, front)
    ]
    table = pd.DataFrame(rows, columns=["searcher", "worker_seconds", "hypervolume", "number"])
    return table.astype({"number": "Int64"})


def standings(folder: RunFolder) -> list[Standing]:
    """How the rivals of a run but `INT8` compare with it, the best of them first. Raises `RunFolderError` as `curves` does."""
    table = curves(folder)
    ours, scoring = table[table.searcher == OURS], _front(folder).scoring
    found = [_standing(rival, table[table.searcher == rival.path.name], ours, scoring) for rival in _searchers(folder)]
    return sorted(found, key=lambda standing: (-standing.hypervolume, standing.rival))


def _searchers(folder: RunFolder) -> list[RunFolder]:
    """The rivals that spend compute: one model that is only quantised spends next to none."""
    return [rival for rival in rivals_in(folder) if rival.path.name != INT8]


def _standing(rival: RunFolder, curve: pd.DataFrame, ours: pd.DataFrame, scoring: Scoring) -> Standing:
    spent, volume = float(curve.worker_seconds.iloc[-1]), float(curve.hypervolume.iloc[-1])
    scores = [result.metrics[SCORE] for result in rival.results() if result.status is Status.COMPLETE]
    by_then = ours[ours.worker_seconds <= spent]
    return Standing(
        rival=rival.path.name,
        trials=len(curve) - 1,
        worker_seconds=spent,
        hypervolume=volume,
        ours=float(by_then.hypervolume.iloc[-1]) if len(by_then) else 0.0,
        reached=_reached(ours, volume),
        accuracy=max(scores, key=lambda score: scoring.gain(score, 0.0), default=None),
    )


def _reached(curve: pd.DataFrame, volume: float) -> float | None:
    """The worker-seconds after which the curve has `volume` and never falls below it again."""
    below = (curve.hypervolume < volume).to_numpy().nonzero()[0]
    first = int(below[-1]) + 1 if len(below) else 0
    return float(curve.worker_seconds.iloc[first]) if first < len(curve) else None


def _curve(folder: RunFolder, front: ParetoFront) -> Iterator[tuple[float, float, int | None]]:
    results = folder.results()
    before = preparation_seconds(folder)
    yield before, 0.0, None
    volume = HypervolumeSoFar(front.objectives, front.limits, front.baseline, front.scoring)
    spent = accumulate((result.compute for result in results), initial=before)
    next(spent)
    for result, seconds in zip(results, spent, strict=True):
        yield seconds, volume.add(result), result.number


def _front(folder: RunFolder) -> ParetoFront:
    if not folder.front_json.exists():
        raise RunFolderError(f"{folder.path} has no front yet: no trial has finished")
    return ParetoFront.from_json(folder.front_json.read_bytes(), source=str(folder.front_json))
