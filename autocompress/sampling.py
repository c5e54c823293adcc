"""How policies are made: a sampler by its name, and the space asked with a trial of the study."""

from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, TrialState, create_trial
from pydantic import ValidationError

from autocompress.errors import InputError, unknown_name
from autocompress.experiment import Budget, Experiment, is_guided
from autocompress.layer import Layers
from autocompress.noun import first_problem
from autocompress.policy import Policy

if TYPE_CHECKING:
    from autocompress.prior import Prior

SAMPLERS = ("tpe", "nsga2", "random")
_REHEARSALS = 20


def rehearse(experiment: Experiment, layers: Layers, prior: "Prior | None") -> None:
    """Finds before the first trial what would fail in every one. Raises `InputError`."""
    study = optuna.create_study(sampler=RandomSampler(seed=experiment.seed))
    distributions = {}
    for _ in range(_REHEARSALS):
        trial = study.ask()
        sampled(experiment, layers, trial, prior)
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


def sampler_named(name: str, seed: int, budget: Budget) -> BaseSampler:
    match name:
        case "tpe":
            return TPESampler(multivariate=True, seed=seed)
        case "nsga2":
            # Optuna's population of 50 would spend a budget of 50 trials on random ones.
            population = 50 if budget.trials is None else min(50, max(8, budget.trials // 5))
            return NSGAIISampler(population_size=population, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
    raise unknown_name("sampler", name, SAMPLERS)


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
    menu = experiment.target.menu
    try:
        policy = experiment.space(trial, layers, experiment.target, *([prior] if is_guided(experiment.space) else []))
        if not isinstance(policy, Policy):
            raise TypeError(f"it returned {policy!r}")
        policy.check(layers, menu)
        return policy.canonical(layers, menu)
    except ValidationError as error:
        raise _no_policy(first_problem(error)) from error
    except InputError as error:
        raise _no_policy(str(error)) from error
    except Exception as error:
        raise _no_policy(f"{type(error).__name__}: {error}") from error


def _no_policy(why: str) -> InputError:
    return InputError(f"the search space made no valid policy: {why.splitlines()[0]}")
