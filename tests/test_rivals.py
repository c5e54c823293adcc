from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.samplers import NSGAIISampler
from optuna.storages import InMemoryStorage
from optuna.trial import BaseTrial

from autocompress.compute import INT8, UNCOMPRESSED
from autocompress.errors import ExperimentError, UnknownNameError
from autocompress.experiment import Budget, Experiment
from autocompress.halving import Halving
from autocompress.layer import Layers
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.refitting import Refit
from autocompress.result import Status, TrialResult
from autocompress.rivals import RIVALS, has_levels, rival_experiment, uniform_starts
from autocompress.search import Search
from autocompress.target import MENUS, Target
from autocompress.testing import ToyTask
from search_spaces import joint, mixed_precision, per_layer, per_stage
from tests.nets import one_linear, resnet20, vgg

LAYERS = vgg()
BASELINE = {"size_bytes": 1000.0, "latency_ms": 10.0, "accuracy": 0.9}
EXPERIMENT = Experiment(
    task=ToyTask(),
    space=joint.make(steps=(75, 150)),
    limits=("accuracy >= baseline - 0.03",),
    budget=Budget(trials=40, minutes=4),
    seed=3,
    halving=Halving(),
    refit=Refit(),
    start=({"weight_bits": 4},),
)


def trial_of(number: int, steps: int, *, seconds: float = 10.0, distill: Distill | None = None, **changes: Any) -> TrialResult:
    policy = Policy(finetune=Finetune(steps=steps, learning_rate=1e-3 + number * 1e-6, weight_decay=0.05), distill=distill)
    known = {"status": Status.COMPLETE, "seed": 0, "started": 0.0, "seconds": {"finetune": seconds}, "metrics": BASELINE}
    return TrialResult(**{"number": number, "policy": policy, **known, **changes})


RESULTS = [
    trial_of(0, 75),
    trial_of(1, 150, distill=Distill(temperature=3.0)),
    trial_of(2, 150, status=Status.STOPPED, seconds=0.0),
    trial_of(3, 600, seconds=40.0, refit_of=1),
]


def rival(name: str, experiment: Experiment = EXPERIMENT, *, layers: Layers = LAYERS, **changes: Any) -> Experiment:
    known = {"results": RESULTS, "worker_seconds": 400.0, **changes}
    return rival_experiment(name, experiment, known["results"], layers, worker_seconds=known["worker_seconds"])


def policies(experiment: Experiment, count: int, layers: Layers = LAYERS) -> list[Policy]:
    """The first that the search would run."""
    search = Search(experiment, layers, BASELINE, study=InMemoryStorage())
    asked = (search.ask() for _ in range(count))
    return [one.policy for one in asked if one is not None]


def starts_of(experiment: Experiment) -> Sequence[dict[str, Any]]:
    assert not callable(experiment.start)
    return experiment.start


def is_uniform(policy: Policy, layers: Layers = LAYERS) -> bool:
    shares = [policy.channel_sparsity.get(group.name, 0.0) for group in layers.groups]
    inner = [policy.layers.get(layer.name, LayerPolicy()) for layer in layers if layer.name not in layers.ends]
    bits = {layer.weight_bits for layer in inner}
    # A group of 100 channels keeps another multiple than one of 64.
    return max(shares) - min(shares) < 0.15 and len(bits) == 1 and len({layer.weight_sparsity for layer in inner}) == 1


def guided(trial: BaseTrial, layers: Layers, target: Target, prior: object) -> Policy:
    raise AssertionError("a rival has no prior")


# --- what all have in common


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_has_the_same_task_and_none_of_the_machinery(name: str) -> None:
    theirs = rival(name)
    assert (theirs.task, theirs.limits, theirs.target, theirs.seed) == (
        EXPERIMENT.task,
        EXPERIMENT.limits,
        EXPERIMENT.target,
        EXPERIMENT.seed,
    )
    assert theirs.halving is None
    assert theirs.refit == (None if name in (INT8, UNCOMPRESSED) else EXPERIMENT.refit)
    assert not theirs.needs_prior
    assert theirs.budget.worker_seconds == 400
    assert theirs.budget.minutes is None
    assert theirs.settings["rival"] == name
    for policy in policies(theirs, 12):
        assert not policy.repair or not (policy.layers or policy.channel_sparsity)


def test_an_unknown_rival_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no rival 'nsga3'; did you mean 'nsga2'"):
        rival("nsga3")


# --- the raw space


@pytest.mark.parametrize("name", ["random", "nsga2", "tpe"])
def test_a_cold_rival_samples_the_space_of_the_run_and_begins_with_nothing(name: str) -> None:
    theirs = rival(name)
    assert theirs.start == ()
    found = policies(theirs, 10)
    assert {policy.finetune.steps for policy in found} == {75, 150}
    assert sum(is_uniform(policy) for policy in found) == 0


@pytest.mark.parametrize("name", ["random", "tpe-warm"])
def test_the_raw_space_of_a_guided_one_is_joint_with_the_steps_of_the_run(name: str) -> None:
    theirs = rival(name, replace(EXPERIMENT, space=guided, start=lambda _: []))
    assert {policy.finetune.steps for policy in policies(theirs, 30)} == {75, 150}, "a refit's steps are no trial's"
    assert theirs.space.__module__ == "search_spaces.joint"


@pytest.mark.parametrize(
    ("seconds", "population"), [(20.0, 8), (1_000.0, 20), (1e6, 50)]
)  # full trials that the budget pays for: 2, 100, 100,000
def test_the_population_of_nsga2_suits_the_budget(seconds: float, population: int) -> None:
    theirs = rival("nsga2", worker_seconds=seconds)
    assert isinstance(theirs.sampler, NSGAIISampler)
    assert theirs.sampler._population_size == population


# --- the uniform walk


def test_the_uniform_rival_walks_usual_policies_first_and_then_the_grid() -> None:
    found = policies(rival("uniform"), 60)
    assert len({policy.key() for policy in found}) == 60
    assert all(is_uniform(policy) for policy in found)
    assert {policy.finetune.steps for policy in found} == {150}, "the longest training that the run gave its trials"
    assert all(policy.distill is not None for policy in found), "as trials of the run had a teacher"
    inner = [(policy.layers["conv2"].weight_bits, policy.channel_sparsity.get("conv1", 0.0)) for policy in found]
    assert inner[:10] == [(7, 0), (4, 0), (3, 0), (7, 0.25), (4, 0.25), (3, 0.25), (7, 0.5), (4, 0.5), (3, 0.5), (4, 0.625)]
    assert {policy.layers["conv2"].weight_sparsity for policy in found[:10]} == {0.0}
    # Coarse first: both axes are spread out long before each value was seen.
    assert {3, 5, 6, 7} <= {bits for bits, _ in inner[10:20]}
    assert {policy.layers["conv2"].weight_sparsity for policy in found[10:]} >= {0.4, 0.8}


def test_the_uniform_rival_has_no_teacher_where_the_run_had_none() -> None:
    found = policies(rival("uniform", results=RESULTS[:1]), 10)
    assert all(policy.distill is None for policy in found)


def test_the_uniform_rival_ends_when_everything_was_tried() -> None:
    layers = one_linear()
    found = policies(rival("uniform", layers=layers, results=RESULTS[:1]), 1000, layers)
    assert len(found) == 9 * 2, "shares of zeros, with and without a teacher: the only layer is an end and keeps its bits"


# --- warm starts


@pytest.mark.parametrize("layers", [vgg(), resnet20()], ids=["vgg", "resnet20"])
@pytest.mark.parametrize("name", ["nsga2-warm", "tpe-warm"])
def test_a_warm_rival_begins_with_uniform_policies_as_parameters_of_the_raw_space(name: str, layers: Layers) -> None:
    theirs = rival(name, layers=layers)
    assert len(starts_of(theirs)) == 10
    found = policies(theirs, 10, layers)
    inner = layers.layers[1].name
    bits = [policy.layers[inner].weight_bits for policy in found]
    shares = [policy.channel_sparsity.get(layers.groups[0].name, 0.0) for policy in found]
    assert bits == [7, 4, 3, 7, 4, 3, 7, 4, 3, 4]
    assert shares == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.625] if layers is LAYERS else sorted(shares)
    for policy in found:
        settings = [policy.layers[layer.name] for layer in layers]
        assert all(setting.activation_bits == 8 and setting.weight_sparsity == 0 for setting in settings)
        assert {policy.layers[layer.name].weight_bits for layer in layers if layer.name not in layers.ends} == {
            settings[1].weight_bits
        }
        assert policy.finetune == Finetune(steps=150, learning_rate=1e-3, weight_decay=1e-4)
        assert policy.distill == Distill(temperature=4.0, share=0.6, hint_share=0.0)


@pytest.mark.parametrize(("module", "count"), [(mixed_precision, 3), (per_layer, 4), (per_stage, 10)])
def test_any_space_of_levels_and_offsets_can_be_begun_with_uniform_policies(module: Any, count: int) -> None:
    theirs = rival("tpe-warm", replace(EXPERIMENT, space=module.make(steps=(75, 150))))
    assert len(starts_of(theirs)) == count
    assert all(is_uniform(policy) for policy in policies(theirs, count))


def test_a_level_of_the_users_own_range_is_met_as_near_as_it_goes() -> None:
    def coarse(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        share = trial.suggest_float("channel_sparsity", 0.1, 0.5)
        bits: Any = trial.suggest_categorical("weight_bits", [None, 5, 8])
        finetune = Finetune(steps=trial.suggest_int("steps", 10, 95, step=5), batch_size=trial.suggest_int("batch", 8, 64))
        return Policy(
            channel_sparsity={group.name: share for group in layers.groups},
            layers={layer.name: LayerPolicy(weight_bits=bits) for layer in layers},
            finetune=finetune,
        )

    starts = uniform_starts(replace(EXPERIMENT, space=coarse), LAYERS)
    levels = [(one["weight_bits"], one["channel_sparsity"]) for one in starts]
    assert levels == [(8, 0.1), (5, 0.1), (8, 0.25), (5, 0.25), (8, 0.5), (5, 0.5)]
    assert {one["steps"] for one in starts} == {95}
    assert all("batch" not in one for one in starts), "what is not known is left to the sampler"


def test_a_space_without_levels_has_no_warm_start() -> None:
    def own(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        return Policy(finetune=Finetune(steps=trial.suggest_int("length", 0, 10)))

    experiment = replace(EXPERIMENT, space=own)
    assert not has_levels(experiment, LAYERS)
    assert has_levels(EXPERIMENT, LAYERS)
    assert has_levels(replace(EXPERIMENT, space=guided), LAYERS)
    with pytest.raises(ExperimentError, match="none of the parameters channel_sparsity, weight_bits, weight_sparsity"):
        rival("tpe-warm", experiment)
    assert policies(rival("tpe", experiment), 3)


# --- those that do not search


def test_the_quantised_rival_is_one_policy_of_8_bits() -> None:
    theirs = rival("int8", replace(EXPERIMENT, space=guided, start=lambda _: []))
    (policy,) = policies(theirs, 3)
    assert policy.layers.keys() == {layer.name for layer in LAYERS}
    assert set(policy.layers.values()) == {LayerPolicy(weight_bits=theirs.target.menu.integer_weight_bits, activation_bits=8)}
    assert not any(policy.channel_sparsity.values())
    assert policy.finetune.steps == 0
    assert policy.distill is None


def test_a_target_without_integers_has_no_quantised_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MENUS, "onnxruntime", Target().menu.model_copy(update={"weight_bits": (None,)}))
    with pytest.raises(ExperimentError, match="target onnxruntime-cpu stores no integers"):
        rival("int8")


def test_the_uncompressed_rival_only_trains_as_the_run_did() -> None:
    theirs = rival("uncompressed")
    found = policies(theirs, 100)
    assert len(found) == theirs.budget.trials == 3 * 3 * 2
    assert all(not (policy.layers or policy.channel_sparsity) for policy in found)
    assert {policy.finetune.steps for policy in found} == {75, 150, 750}, "a refit adds to the steps of its trial"
    assert found[0].finetune.steps == 750, "the longest first: a budget may not pay for all"
    assert {policy.distill for policy in found} == {None, Distill(temperature=3.0)}
    rates = sorted({policy.finetune.learning_rate for policy in found})
    assert rates == pytest.approx([1e-3 / 3, 1e-3, 3e-3], rel=0.01)
    assert {policy.finetune.weight_decay for policy in found} == {0.05}


def test_rivals_train_where_the_run_had_untrained_students_too() -> None:
    untrained = [trial_of(number, 0, seconds=1.0) for number in range(10, 30)]
    results = [*RESULTS, *untrained]
    with_them, without = (
        [rival_experiment(name, EXPERIMENT, known, LAYERS, worker_seconds=100) for name in ("nsga2", "uncompressed")]
        for known in (results, RESULTS)
    )
    for one, other in zip(with_them, without, strict=True):
        assert policies(one, 30) == policies(other, 30)
        assert one.start == other.start
    refitted = [*untrained, trial_of(50, 600, seconds=40.0, refit_of=11)]
    for name in ("uniform", "random"):
        run = replace(EXPERIMENT, space=guided, start=lambda _: [])
        theirs = rival_experiment(name, run, refitted, LAYERS, worker_seconds=100)
        assert {policy.finetune.steps for policy in policies(theirs, 5)} == {0}, "a refit's steps are no trial's"
    assert with_them[0].sampler._population_size == without[0].sampler._population_size


def test_of_many_lengths_the_uncompressed_rival_takes_three() -> None:
    results: Sequence[TrialResult] = [trial_of(number, 10 * number) for number in range(1, 12)]
    assert {policy.finetune.steps for policy in policies(rival("uncompressed", results=results), 20)} == {10, 60, 110}


def test_a_run_that_never_trained_has_an_uncompressed_rival_of_one_trial() -> None:
    found = policies(rival("uncompressed", results=[trial_of(0, 0)]), 20)
    assert [policy.finetune.steps for policy in found] == [0]


def test_the_storage_of_a_rival_holds_no_more_than_its_walk() -> None:
    storage = InMemoryStorage()
    Search(rival("uniform"), LAYERS, BASELINE, study=storage)
    (summary,) = optuna.get_all_study_summaries(storage)
    assert summary.n_trials == 100
