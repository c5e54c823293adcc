"""The decision that a report is opened for: which model to take, what else there is, and the commands that deliver them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront, Pick
from autocompress.objective import SCORE
from autocompress.report.data import show_spread, show_test, times_faster, times_smaller
from autocompress.result import TrialResult
from autocompress.words import times

NEAREST = "nearest to the limits"


@dataclass(frozen=True)
class Choice:
    """A model to take: what it is among the others, what it gains, how well it does, and the command that exports it."""

    role: str
    number: int
    gains: str
    score: str
    command: str

    @property
    def sentence(self) -> str:
        """``8.9x smaller, 3.1x faster, -0.4 points; 98.1 ± 0.6% on test``."""
        return f"{self.gains}; {self.score}"


@dataclass(frozen=True)
class Decision:
    """The `recommended` model, None when no trial meets the limits, and three others.

    The `alternatives` are the ends of the front or, when no trial meets the limits, the nearest.
    """

    recommended: Choice | None
    alternatives: tuple[Choice, ...]


def decision_of(front: ParetoFront, folder: RunFolder) -> Decision:
    """Commands name trials by number: what they deliver does not depend on how a pick is defined."""
    chosen = front.recommended()
    if chosen is None:
        return Decision(None, tuple(choice_of(NEAREST, result, front, folder) for result in front.nearest))
    roles: dict[str, Pick] = {"smallest": "smallest", "fastest": "fastest", best_role(front): "best"}
    ends = {role: front.pick(how) for role, how in roles.items()}
    return Decision(
        choice_of("recommended", chosen, front, folder),
        tuple(choice_of(role, end, front, folder) for role, end in ends.items() if end is not None),
    )


def best_role(front: ParetoFront) -> str:
    """What the member of the best score is called."""
    return "most accurate" if front.scoring.name == SCORE else f"best {front.scoring.name}"


def gains_words(result: TrialResult, front: ParetoFront) -> str:
    """``8.9x smaller, 3.1x faster, -0.4 points``; the points on the test split where both models were scored there."""
    base = front.baseline
    faster = times(times_faster(result.metrics, base), "faster", "slower")
    further = [f"{times_faster(result.metrics, base, name):.1f}x on {place}" for name, place in front.further_latencies.items()]
    words = [
        times(times_smaller(result.metrics, base), "smaller", "larger"),
        f"{faster} ({', '.join(further)})" if further else faster,
    ]
    return ", ".join([*words, _change(result, front)])


def score_words(result: TrialResult, front: ParetoFront) -> str:
    """``98.1 ± 0.6% on test``, or the validation score of a model that was not scored there."""
    test, spread = front.test.get(result.number), front.spread.get(result.number)
    if test is not None:
        score, split = show_test(test, front.scoring), "test"
    else:
        score = show_spread(spread, front.scoring) if spread else front.scoring.show(result.metrics[SCORE])
        split = "validation"
    named = score if front.scoring.share else f"{front.scoring.name} {score}"
    return f"{named} on {split}"


def export_command(number: int, role: str, folder: RunFolder) -> str:
    """What to type for this model: ``autocompress export runs/mine --pick 7 -o mine-smallest``."""
    into = f"{folder.path.name}-{number if role == NEAREST else role.replace(' ', '-')}"
    return f"{export_prefix(folder)} --pick {number} -o {shlex.quote(into)}"


def export_prefix(folder: RunFolder) -> str:
    """``autocompress export runs/mine``, to be followed by what to export."""
    return f"autocompress export {shlex.quote(_from_here(folder.path))}"


def export_folder(folder: RunFolder) -> str:
    """``mine-``, to be followed by the number of the trial that is exported."""
    return shlex.quote(f"{folder.path.name}-")


def choice_of(role: str, result: TrialResult, front: ParetoFront, folder: RunFolder) -> Choice:
    return Choice(
        role=role,
        number=result.number,
        gains=gains_words(result, front),
        score=score_words(result, front),
        command=export_command(result.number, role, folder),
    )


def _change(result: TrialResult, front: ParetoFront) -> str:
    test, before = front.test.get(result.number), front.baseline_test
    if test is not None and before is not None:
        return front.scoring.change(test.accuracy, before.accuracy)
    spread = front.spread.get(result.number)
    return front.scoring.change(spread.mean if spread else result.metrics[SCORE], front.baseline[SCORE])


def _from_here(path: Path) -> str:
    """Relative where it lies below the working folder: the same command works there, and no home folder is told."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
