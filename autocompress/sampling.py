"""How policies are made: a sampler by its name, and the space asked with a trial of the study."""

from collections.abc import Collection, Container, Sequence
from copy import deepcopy as copied
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from autocompress.errors import InputError, unknown_name
from autocompress.experiment import Budget, Experiment, is_guided
from autocompress.layer import Layers
from autocompress.noun import first_problem
from autocompress.policy import Policy
from autocompress.result import TrialResult

if TYPE_CHECKING:
    from autocompress.prior import Prior

SAMPLERS = ("tpe", "nsga2", "random")
# TPE takes time in proportion to the trials that it goes by, before every trial and while workers wait. Of the others it
# lets the weight go to nothing by itself, the older they are; the best, which it aims at, must not be forgotten.
LATEST = 500
# Of a front of more than so many those go on being seen that are spread over it: three objectives and some luck make fronts
# of hundreds, and TPE's choice among them takes more than proportional time.
BEST = 100
_LEARNT_FROM = (TrialState.COMPLETE, TrialState.PRUNED)
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
_REHEARSALS = 20


def rehearse(experiment: Experiment, layers: Layers, prior: "Prior | None") -> int:
    """Finds before the first trial what would fail in every one; gives the most steps that a policy of the space had.

    Raises `InputError`.
    """
    study = optuna.create_study(sampler=RandomSampler(seed=experiment.seed))
    distributions, steps = {}, 0
    for _ in range(_REHEARSALS):
        trial = study.ask()
        steps = max(steps, sampled(experiment, layers, trial, prior).finetune.steps)
        distributions.update(trial.distributions)
    for params in start_params(experiment, prior):
        for name, value in params.items():
            if name not in distributions:
                raise unknown_name("parameter of the search space", name, distributions)
            try:
                create_trial(state=TrialState.FAIL, params={name: value}, distributions={name: distributions[name]})
            except (ValueError, TypeError) as error:
                raise InputError(f"start: {name!r} cannot be {value!r}; it is a {distributions[name]}") from error
        study.enqueue_trial(params)
        sampled(experiment, layers, study.ask(), prior)
    return steps


def spread(front: Sequence[TrialResult], metric: str) -> set[int]:
    """The numbers of at most `BEST` members, evenly along the front as the metric orders it, both ends among them."""
    ordered = sorted(front, key=lambda member: (member.metrics[metric], member.number))
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), BEST)).round().astype(int)
    return {ordered[place].number for place in places}


def sampler_named(name: str, seed: int, budget: Budget, *, best: Collection[int] = ()) -> BaseSampler:
    """A new sampler, for one trial. TPE goes by the `LATEST` trials that have ended, and the `best`, given by their numbers.

    Of a study with no more trials than that, and no refits, it proposes what Optuna's own would. Raises `UnknownNameError`.
    """
    match name:
        case "tpe":
            return _LatestTPE(best, seed)
        case "nsga2":
            # Optuna's population of 50 would spend a budget of 50 trials on random ones.
            population = 50 if budget.trials is None else min(50, max(8, budget.trials // 5))
            return NSGAIISampler(population_size=population, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
    raise unknown_name("sampler", name, SAMPLERS)


class _LatestTPE(TPESampler):
    """TPE as it is, for one trial, over a part of the study."""

    def __init__(self, best: Collection[int], seed: int) -> None:
        super().__init__(multivariate=True, seed=seed)
        self._best = best
        self._part: _Part | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(self._part_of(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._part_of(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(self._part_of(study), trial, param_name, param_distribution)

    def _part_of(self, study: optuna.Study) -> "_Part":
        self._part = self._part or _Part(study, self._best)
        return self._part


class _Part(optuna.Study):
    """A study as it is now, of which only the `LATEST` trials that TPE can learn from, the `best` and unfinished ones show.

    Refits do not: they have the parameters of their trials, but were trained for longer than those say.
    """

    def __init__(self, study: optuna.Study, best: Collection[int]) -> None:
        self.__dict__.update(study.__dict__)
        trials = [trial for trial in study.get_trials(deepcopy=False) if "refit_of" not in trial.user_attrs]
        ended = [trial.number for trial in trials if trial.state in _LEARNT_FROM]
        shown = {*ended[-LATEST:], *best}
        self._shown = [trial for trial in trials if trial.number in shown or trial.state in _UNFINISHED]

    # Samplers read trials by this method only. Should they stop doing so, they see all trials again, and take longer.
    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        shown = [trial for trial in self._shown if states is None or trial.state in states]
        return copied(shown) if deepcopy else shown


def start_params(experiment: Experiment, prior: "Prior | None") -> list[dict[str, Any]]:
    """The parameters that are tried first. Raises `InputError` when they cannot be made."""
    if not callable(experiment.start):
        return list(experiment.start)
    assert prior is not None
    try:
        return list(experiment.start(prior))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the experiment's start failed: {type(error).__name__}: {error}") from error


def sampled(experiment: Experiment, layers: Layers, trial: BaseTrial, prior: "Prior | None") -> Policy:
    """The canonical policy that the space makes. Raises `InputError` when there is none."""
    return asked_for(experiment, layers, trial, prior).canonical(layers, experiment.target.menu)


def asked_for(experiment: Experiment, layers: Layers, trial: BaseTrial, prior: "Prior | None") -> Policy:
    """The policy as the space makes it, with what does not matter in it. Raises `InputError` when there is none."""
    try:
        policy = experiment.space(trial, layers, experiment.target, *([prior] if is_guided(experiment.space) else []))
        if not isinstance(policy, Policy):
            raise TypeError(f"it returned {policy!r}")
        policy.check(layers, experiment.target.menu)
        return policy
    except ValidationError as error:
        raise _no_policy(first_problem(error)) from error
    except InputError as error:
        raise _no_policy(str(error)) from error
    except Exception as error:
        raise _no_policy(f"{type(error).__name__}: {error}") from error


def _no_policy(why: str) -> InputError:
    return InputError(f"the search space made no valid policy: {why.splitlines()[0]}")
