"""Was the search worth its compute: how the hypervolumes of the search and its rivals grew, and the answer in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from autocompress.compute import OURS, UNCOMPRESSED, Standing
from autocompress.front import ParetoFront
from autocompress.objective import SCORE


@dataclass(frozen=True)
class Curve:
    """How the front of one searcher grew: its hypervolume was `volumes[i]` from `seconds[i]` worker-seconds on.

    `numbers[i]` is the trial that made it so, None at both ends: where the searcher began, and where it stopped.
    """

    name: str
    seconds: tuple[float, ...]
    volumes: tuple[float, ...]
    numbers: tuple[int | None, ...]

    @property
    def ours(self) -> bool:
        """True for the run itself, False for a rival."""
        return self.name == OURS


@dataclass(frozen=True)
class Worth:
    """The run (the first of `curves`) beside its rivals (the others, the best first).

    `standings` compare them, the best rival first. A rival that found nothing has a standing and no curve.
    """

    curves: tuple[Curve, ...]
    standings: tuple[Standing, ...]

    @property
    def best(self) -> Standing | None:
        """The best rival; None when none found anything."""
        return self.standings[0] if self.standings and self.standings[0].hypervolume else None


def worth_of(table: pd.DataFrame, standings: Sequence[Standing]) -> Worth | None:
    """What `compute.curves` and `compute.standings` tell; None before the first trial."""
    if not (table["searcher"] == OURS).sum() > 1:
        return None
    drawn = [OURS, *(standing.rival for standing in standings if standing.hypervolume)]
    return Worth(tuple(_curve(name, table[table["searcher"] == name]) for name in drawn), tuple(standings))


def verdict(worth: Worth) -> str:
    """The answer, in one sentence."""
    own, best = worth.curves[0], worth.best
    final, total = own.volumes[-1], own.seconds[-1]
    if not worth.standings:
        return (
            f"The search reached a hypervolume of {final:.3f} in {total:,.0f} worker-seconds. "
            "There is nothing to compare it with yet: `autocompress baseline RUN` gives plain searches the same compute."
        )
    if best is None:
        whose = f"the search reached a hypervolume of {final:.3f}" if final else "nor did the search"
        return f"No rival found a model within the limits that is better than the uncompressed one; {whose}."
    if best.share is None:
        return (
            f"The search did not reach what {best.rival} came to: with the same compute it had a hypervolume of "
            f"{best.ours:.3f}, and {best.rival} {best.hypervolume:.3f}."
        )
    gain = final / best.hypervolume - 1
    return (
        f"The search had the final hypervolume of its best rival, {best.rival} ({best.hypervolume:.3f}), "
        f"after {best.share:.0%} of that rival's compute"
        + (f", and ended {gain:.0%} above it, at {final:.3f}." if gain >= 0.005 else ", and ended there.")
    )


def control(worth: Worth, front: ParetoFront) -> str:
    """What fine-tuning alone gains, in one sentence; empty when it was not tried."""
    found = next((standing for standing in worth.standings if standing.rival == UNCOMPRESSED), None)
    if found is None or found.accuracy is None:
        return ""
    before, after = map(front.scoring.show, (front.baseline[SCORE], found.accuracy))
    return f"Fine-tuned in the same way but not compressed, the model scores {after} at best ({before} before)."


def _curve(name: str, rows: pd.DataFrame) -> Curve:
    """Both ends and where it changes: a search of thousands of trials is drawn by a few points."""
    steps = rows[rows["hypervolume"].diff().fillna(0.0) != 0]
    first, last = rows.iloc[0], rows.iloc[-1]
    return Curve(
        name=name,
        seconds=(float(first["worker_seconds"]), *map(float, steps["worker_seconds"]), float(last["worker_seconds"])),
        volumes=(float(first["hypervolume"]), *map(float, steps["hypervolume"]), float(last["hypervolume"])),
        numbers=(None, *map(int, steps["number"]), None),
    )
