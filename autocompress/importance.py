"""Which knob of the search space mattered, for each objective: from the stored study, by Optuna's own evaluator."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autocompress.folder import RunFolder, write_whole
from autocompress.noun import Noun
from autocompress.objective import Objective
from autocompress.shared import DUPLICATE
from autocompress.study import STUDY_NAME, open_journal

# With more knobs, or fewer trials, the figures are noise.
MOST_PARAMETERS = 25
LEAST_TRIALS = 20
# Over 25 parameters, 200 trials take seconds for each objective, 500 ten, and say the same.
_MOST_TRIALS = 200


class Importance(Noun):
    """What each knob of the space contributes to how an objective varies over the sampled trials: `importance.json`.

    `shares` maps an objective to its parameters, the most important first; those of an objective sum to 1. A share is of
    the variance that parameters explain one by one (functional ANOVA over a random forest: Hutter et al., 2014).
    `missing` says of an objective that has none why not. `trials` is the number of trials that count.
    """

    version: Literal[1] = 1
    trials: int
    shares: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}


def write_importance(folder: RunFolder, objectives: Sequence[Objective], *, seed: int = 0) -> Importance:
    """Finds the importances of a run's study and stores them in its folder. Raises `RunFolderError`."""
    found = importance_of(folder.study, objectives, seed=seed)
    write_whole(folder.importance, found.to_json(indent=1))
    return found


def importance_of(study: Path, objectives: Sequence[Objective], *, seed: int = 0) -> Importance:
    """The importances of the knobs in a stored study, whose values are those of `objectives` in this order.

    Complete trials count; refits do not, which nobody sampled, nor do repeated policies, which nobody ran. Raises
    `RunFolderError` when the study is damaged.
    """
    trials = _sampled(study)
    distributions = _distributions(trials)
    reason = _too_little(trials, distributions)
    shares: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    for place, objective in enumerate(objectives):
        values = [trial.values[place] for trial in trials]
        if reason is not None:
            missing[objective.metric] = reason
        elif max(values) - min(values) <= 1e-9 * max(map(abs, values)):
            missing[objective.metric] = f"it is the same in all {len(trials)} trials"
        else:
            shares[objective.metric] = _shares(trials, distributions, values, seed)
    return Importance(trials=len(trials), shares=shares, missing=missing)


def _sampled(study: Path) -> list[FrozenTrial]:
    if not study.exists() or not study.stat().st_size:
        return []
    stored = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(study))
    complete = stored.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        trial
        for trial in complete
        if not trial.user_attrs.keys() & {"refit_of", DUPLICATE} and all(math.isfinite(value) for value in trial.values)
    ]


def _distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The parameters that every trial has, with the same range, and that can take more than one value."""
    if not trials:
        return {}
    first, *others = (trial.distributions for trial in trials)
    return {
        name: distribution
        for name, distribution in first.items()
        if not distribution.single() and all(other.get(name) == distribution for other in others)
    }


def _too_little(trials: Sequence[FrozenTrial], distributions: dict[str, BaseDistribution]) -> str | None:
    if len(trials) < LEAST_TRIALS:
        return f"only {len(trials)} trials were sampled and completed, at least {LEAST_TRIALS} are needed"
    if len(distributions) > MOST_PARAMETERS:
        return f"the space has {len(distributions)} parameters, more than {MOST_PARAMETERS} cannot be told apart"
    if len(distributions) < 2:
        return "the space has fewer than two parameters that every trial has in the same range"
    return None


def _shares(
    trials: Sequence[FrozenTrial], distributions: dict[str, BaseDistribution], values: Sequence[float], seed: int
) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # scikit-learn: a second or two

    picked = np.linspace(0, len(trials) - 1, min(len(trials), _MOST_TRIALS)).round().astype(int)
    # A study of its own: the stored one holds trials that do not count, and is not to be written to.
    study = optuna.create_study()
    for place in picked:
        params = {name: trials[place].params[name] for name in distributions}
        study.add_trial(create_trial(params=params, distributions=distributions, value=values[place]))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return {name: round(float(share), 4) for name, share in found.items()}
