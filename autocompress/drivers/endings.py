"""What becomes of trials that do not go all the way, and what is said of it."""

from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from autocompress.layer import Layers
from autocompress.result import Environment, Rung, Status, TrialResult

if TYPE_CHECKING:  # trainers load this module; they need no Optuna
    from autocompress.search import Asked

_REASON_LENGTH = 240


def one_line(text: str) -> str:
    """As much of what an error says as fits a line."""
    return shorten(text, _REASON_LENGTH)


def overdue(minutes: float) -> str:
    """What is said of a trial that took longer than it may."""
    return f"took longer than {minutes:g} minutes (trial_minutes of the experiment)"


def out_of_memory(result: TrialResult) -> TrialResult:
    """The result of a trial for which the memory of a GPU was too little twice, the second time with nobody beside it."""
    return result.model_copy(update={"error": f"{result.error} (tried again alone on a GPU)"})


def unmeasured(
    asked: "Asked",
    layers: Layers,
    status: Status,
    *,
    started: float,
    error: str | None = None,
    rungs: Sequence[Rung] = (),
    environment: Environment | None = None,
) -> TrialResult:
    """The result of a trial that has none of its own: it was stopped, or could not go on."""
    return TrialResult(
        number=asked.number,
        policy=asked.policy,
        status=status,
        rungs=tuple(rungs),
        error=error,
        seed=asked.seed,
        started=started,
        environment=environment,
        summary=asked.policy.describe(layers),
        refit_of=asked.refit_of,
    )
