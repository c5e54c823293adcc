"""The rivals of a search: plain ways to find compressed models, each as an experiment of its own.

None of them has sensitivities, a prior, early stopping or repair. Their best are trained further as those of the search are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from itertools import product
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.trial import BaseTrial

from autocompress.compute import INT8, UNCOMPRESSED
from autocompress.errors import ExperimentError, unknown_name
from autocompress.experiment import Budget, Experiment, Space, is_guided
from autocompress.layer import Layers
from autocompress.policy import Policy
from autocompress.result import Status, TrialResult
from autocompress.target import Target
from search_spaces import joint, uniform

RIVALS = ("uniform", "random", "nsga2", "tpe", "nsga2-warm", "tpe-warm", INT8, UNCOMPRESSED)

# The parameters by which a space treats the whole network alike.
_LEVELS = ("channel_sparsity", "weight_bits", "weight_sparsity")
# What one tries first by hand, mild to strong.
_LADDER = (*product((0.0, 0.25, 0.5), (8, 4, 3)), (0.625, 4))
# What a level is joined by, where the space asks for it.
_USUAL: dict[str, Any] = {
    "importance": "l1",
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "distill/temperature": 4.0,
    "distill/share": 0.6,
    "distill/hint_share": 0.0,
}
# Whatever the most steps of a space are, they are nearest to this.
_ENDLESS = 10**9
# Longer walks are drawn at random from there on.
_WALK = 100
_REHEARSALS = 20
# Optuna's own population of 50 would spend a small budget on random policies.
_LARGEST_POPULATION, _SMALLEST_POPULATION = 50, 8


def rival_experiment(
    name: str, experiment: Experiment, results: Sequence[TrialResult], layers: Layers, *, worker_seconds: float
) -> Experiment:
    """The experiment of one rival of a search of `experiment` that has brought the `results`.

    It has the same task, objectives, limits, target, refits and seed, and `worker_seconds` to spend. `uniform` treats all
    layers alike: some usual policies, then a grid from coarse to fine. `random`, `nsga2` and `tpe` sample the raw space: that
    of the experiment or, when it is guided, the joint one with the same fine-tuning steps; with ``-warm`` they begin with the
    usual uniform policies. `int8` is one model, plainly quantised; `uncompressed` only fine-tunes, as the trials were
    fine-tuned. Raises `UnknownNameError`, and `ExperimentError` for a warm start in a space without levels for the whole
    network and for `int8` on a target without integers.
    """
    if name not in RIVALS:
        raise unknown_name("rival", name, RIVALS)
    plain = replace(
        experiment,
        halving=None,
        sampler="random",
        start=(),
        budget=Budget(trials=None, worker_seconds=worker_seconds),
        settings={**experiment.settings, "rival": name},
    )
    if name == UNCOMPRESSED:
        return _uncompressed(plain, results)
    if name == INT8:
        return _int8(plain, layers)
    if name == "uniform":
        plain = replace(plain, space=_without_repair(uniform.make(steps=_steps(results))))
        return replace(plain, start=list(_walk(plain, layers, distilled=_distilled(results))))
    raw: Any = joint.make(steps=_steps(results)) if is_guided(experiment.space) else experiment.space
    plain = replace(plain, space=_without_repair(raw))
    sampler, _, warm = name.partition("-")
    if sampler == "nsga2":
        plain = replace(plain, sampler=_nsga2(experiment.seed, _expected_trials(results, worker_seconds)))
    elif sampler == "tpe":
        plain = replace(plain, sampler="tpe")
    return replace(plain, start=uniform_starts(plain, layers, distilled=_distilled(results))) if warm else plain


def has_integers(experiment: Experiment) -> bool:
    """True when the target can have a plainly quantised model."""
    return any(bits is not None for bits in experiment.target.menu.weight_bits)


def has_levels(experiment: Experiment, layers: Layers) -> bool:
    """True when the raw space can begin with uniform policies."""
    return is_guided(experiment.space) or bool(_distributions(experiment.space, layers, experiment.target).keys() & {*_LEVELS})


def uniform_starts(experiment: Experiment, layers: Layers, *, distilled: bool = True) -> list[dict[str, Any]]:
    """Parameters of the experiment's space that treat all layers alike, for what one would try first by hand.

    For a space of levels and offsets from them, as ours are. Raises `ExperimentError` when it has no level.
    """
    known = _distributions(experiment.space, layers, experiment.target)
    if not known.keys() & {*_LEVELS}:
        raise ExperimentError(
            f"the search space has none of the parameters {', '.join(_LEVELS)}: a warm start is not known; leave out -warm"
        )
    return list(_starts(known, distilled=distilled))


def _starts(known: dict[str, BaseDistribution], *, distilled: bool) -> Iterator[dict[str, Any]]:
    rungs = ({"channel_sparsity": share, "weight_bits": bits, "weight_sparsity": 0.0} for share, bits in _LADDER)
    yield from _unique(_params(levels, known, distilled=distilled) for levels in rungs)


def _walk(experiment: Experiment, layers: Layers, *, distilled: bool) -> Iterator[dict[str, Any]]:
    """The usual policies, then the grid of the uniform space, coarse to fine."""
    known = _distributions(experiment.space, layers, experiment.target)
    grid = {name: _values(known[name], name) for name in _LEVELS if name in known}
    corners = [list(enumerate(values)) for values in grid.values()]

    def fineness(corner: tuple[tuple[int, Any], ...]) -> int:
        return sum(_depth(place, len(axis)) for (place, _), axis in zip(corner, corners, strict=True))

    ordered = sorted(product(*corners), key=fineness)
    levels = (dict(zip(grid, (value for _, value in corner), strict=True)) for corner in ordered)
    walk = (_params(level, known, distilled=distilled) for level in levels)
    for count, params in enumerate(_unique([*_starts(known, distilled=distilled), *walk])):
        if count == _WALK:
            return
        yield params


def _depth(place: int, count: int) -> int:
    """How often an axis of `count` values has to be halved until the one at `place` is met: 0 for the first."""
    return (count - 1).bit_length() - ((place & -place).bit_length() - 1) if place else 0


def _values(distribution: BaseDistribution, name: str) -> list[Any]:
    """The values of a level, mildest first."""
    if isinstance(distribution, CategoricalDistribution):
        values = _numbers(distribution)
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        count = round((distribution.high - distribution.low) / (distribution.step or 1)) + 1
        values = [place * (distribution.step or 1) + distribution.low for place in range(count)]
    return sorted(values, reverse=name == "weight_bits")


def _params(levels: dict[str, Any], known: dict[str, BaseDistribution], *, distilled: bool) -> dict[str, Any]:
    wanted = {**_USUAL, "distill": distilled, **levels}
    params = {}
    for name, distribution in known.items():
        if name.endswith("_offset") or name == "branches_left_out":
            value: Any = 0
        elif name.endswith("/activation_bits"):
            value = 8
        elif name.endswith("/group_size"):
            value = None
        elif name.endswith("/activation_range"):
            value = "static"
        elif name == "steps":
            value = _ENDLESS
        elif name in wanted:
            value = wanted[name]
        else:
            continue  # left to the sampler
        params[name] = _nearest(distribution, value)
    return params


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    """The value of the distribution that is nearest to what is wanted."""
    if isinstance(distribution, CategoricalDistribution):
        if value in distribution.choices:
            return value
        numbers = _numbers(distribution)
        return min(numbers, key=lambda number: abs(number - value)) if numbers else distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    inside = min(max(value, distribution.low), distribution.high)
    if not distribution.step or distribution.low == distribution.high:
        return inside
    # The very number that Optuna makes of it, so that the same policy is not run twice.
    return round((inside - distribution.low) / distribution.step) * distribution.step + distribution.low


def _numbers(distribution: CategoricalDistribution) -> list[Any]:
    return [choice for choice in distribution.choices if isinstance(choice, int | float) and not isinstance(choice, bool)]


def _unique(dictionaries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for one in dictionaries:
        if one not in seen:
            seen.append(one)
            yield one


def _uncompressed(experiment: Experiment, results: Sequence[TrialResult]) -> Experiment:
    """Each length of training that a trial and its refits had in all, three learning rates, with and without a teacher."""
    results = _trained(results)
    usual = Counter(result.policy.finetune.model_copy(update={"steps": 1}) for result in results).most_common(1)[0][0]
    taught = Counter(result.policy.distill for result in results if result.policy.distill is not None).most_common(1)
    lengths = _lengths(results)
    middle = sorted(result.policy.finetune.learning_rate for result in results)[len(results) // 2]
    rates = [middle, middle / 3, middle * 3]
    teachers = [None, taught[0][0]] if taught else [None]

    def space(trial: BaseTrial, _layers: Layers, _target: Target) -> Policy:
        steps = trial.suggest_categorical("steps", lengths)
        rate = trial.suggest_categorical("learning_rate", rates)
        teacher = teachers[trial.suggest_categorical("distill", list(range(len(teachers))))]
        return Policy(finetune=usual.model_copy(update={"steps": steps, "learning_rate": rate}), distill=teacher)

    grid = [
        {"steps": steps, "learning_rate": rate, "distill": teacher}
        for steps, rate, teacher in product(reversed(lengths), rates, reversed(range(len(teachers))))
    ]
    budget = replace(experiment.budget, trials=len(grid) if lengths != [0] else 1)
    return replace(experiment, space=space, start=grid, budget=budget, refit=None)


def _int8(experiment: Experiment, layers: Layers) -> Experiment:
    """What exporters do by themselves: all layers in the widest integers of the target, calibrated, not trained."""
    if not has_integers(experiment):
        raise ExperimentError(f"target {experiment.target.name} stores no integers: there is no {INT8} to compare with")
    experiment = replace(experiment, space=_without_repair(uniform.make(steps=(0,))), refit=None)
    known = _distributions(experiment.space, layers, experiment.target)
    plain = _params({"channel_sparsity": 0.0, "weight_bits": 8, "weight_sparsity": 0.0}, known, distilled=False)
    return replace(experiment, start=[plain], budget=replace(experiment.budget, trials=1))


def _without_repair(space: Space) -> Space:
    @wraps(space)
    def plain(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        return space(trial, layers, target).model_copy(update={"repair": False})

    return plain


def _distributions(space: Any, layers: Layers, target: Target) -> dict[str, BaseDistribution]:
    """What the space asks for."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    found: dict[str, BaseDistribution] = {}
    for _ in range(_REHEARSALS):
        trial = study.ask()
        space(trial, layers, target)
        found |= trial.distributions
    return found


def _steps(results: Sequence[TrialResult]) -> tuple[int, ...]:
    """The fine-tuning steps that the search gave the trials that it trained, before any refit."""
    return tuple(_spread(sorted({result.policy.finetune.steps for result in _trained(_sampled(results))}), 4))


def _lengths(results: Sequence[TrialResult]) -> list[int]:
    """The steps for which students were trained in all: a refit goes on from its trial."""
    steps = {result.number: result.policy.finetune.steps for result in results}
    totals = {
        steps[result.number] + steps.get(-1 if result.refit_of is None else result.refit_of, 0) for result in _trained(results)
    }
    return _spread(sorted(totals), 3)


def _sampled(results: Sequence[TrialResult]) -> list[TrialResult]:
    return [result for result in results if result.refit_of is None]


def _trained(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Those with fine-tuning, or all when there are none: students that are not repaired have to be trained."""
    return [result for result in results if result.policy.finetune.steps > 0] or list(results)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the sorted values, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(place * (len(values) - 1) / (count - 1))] for place in range(count)]


def _distilled(results: Sequence[TrialResult]) -> bool:
    return any(result.policy.distill is not None for result in results)


def _nsga2(seed: int, trials: float) -> NSGAIISampler:
    population = min(_LARGEST_POPULATION, max(_SMALLEST_POPULATION, int(trials / 5)))
    return NSGAIISampler(population_size=population, seed=seed)


def _expected_trials(results: Sequence[TrialResult], worker_seconds: float) -> float:
    """How many trials of full length, such as those of a rival, the budget pays for."""
    ended = _trained([result for result in _sampled(results) if result.status is Status.COMPLETE])
    complete = [result.compute for result in ended]
    return worker_seconds * len(complete) / (sum(complete) or 1.0)
