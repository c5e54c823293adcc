"""The space over the prior: static, within the limits, and begun along the front; and a raw space begun by the prior."""

import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, Trial

from autocompress.errors import InputError
from autocompress.experiment import Budget, Experiment, Space, is_guided
from autocompress.layer import Layers
from autocompress.objective import Limit
from autocompress.policy import Policy
from autocompress.prior import Prior
from autocompress.search import Search
from autocompress.space import load_space, load_start
from autocompress.target import MENUS, Menu, Target
from autocompress.testing import ToyTask
from search_spaces import budgeted, joint
from tests.nets import one_linear, resnet20, vgg
from tests.tables_made import made_chain, made_costs, made_sensitivity

NETS: dict[str, Callable[[], Layers]] = {
    "vgg": vgg,
    "resnet20": resnet20,
    "one_linear": one_linear,
    "chain": lambda: made_chain(20),
}
FLOATS = Menu(weight_bits=(None,), activation_bits=(None,), weight_sparsity=False, channel_multiple=8)


def uncompressed(layers: Layers, target: Target) -> dict[str, float]:
    costs = made_costs(layers, target)
    size, ms = costs.size_bytes(Policy(), layers), costs.latency_ms(Policy(), layers)
    return {"size_bytes": size, "latency_ms": ms, "accuracy": 0.98}


@cache
def made(net: str, *limits: str, runtime: str = "onnxruntime") -> Prior:
    layers, target = NETS[net](), Target(runtime=runtime)
    return Prior(
        layers,
        target,
        made_sensitivity(layers, target.menu, noise=0.3),
        made_costs(layers, target),
        limits=[Limit.parse(limit) for limit in limits],
        baseline=uncompressed(layers, target),
    )


def drawn(prior: Prior, count: int, space: Space = budgeted.space) -> list[tuple[Trial, Policy]]:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(trial, space(trial, prior.layers, prior.target, prior)) for trial in trials]


# --- the space


@pytest.mark.parametrize("net", list(NETS))
def test_every_parameter_is_asked_every_time_with_the_same_range(net: str) -> None:
    first, *rest = [trial for trial, _ in drawn(made(net), 6)]
    assert len(first.params) == 10
    for trial in rest:
        assert trial.distributions == first.distributions


@pytest.mark.parametrize("net", list(NETS))
def test_every_policy_fits_the_network_and_the_limits_before_it_is_trained(net: str) -> None:
    limits: tuple[str, ...] = ("size <= 1.5 * baseline",)
    if net != "one_linear":  # so small that integers take more bytes
        limits = ("size <= 0.12 * baseline", "latency <= 0.35 * baseline", "accuracy >= baseline - 0.01")
    prior = made(net, *limits)
    assert not prior.unreachable
    baseline = uncompressed(prior.layers, prior.target)
    for _, policy in drawn(prior, 12):
        policy.check(prior.layers, prior.target.menu)
        predicted = {"size_bytes": prior.size_bytes(policy), "latency_ms": prior.latency_ms(policy), "accuracy": 1.0}
        for limit in limits:
            assert Limit.parse(limit).excess(predicted, baseline) <= 1e-9 * baseline["size_bytes"]


def test_the_parameters_alone_give_the_policy_again() -> None:
    prior = made("resnet20")
    for trial, policy in drawn(prior, 5):
        assert budgeted.space(FixedTrial(trial.params), prior.layers, prior.target, prior) == policy


def test_every_parameter_changes_the_policy() -> None:
    prior = made("resnet20")
    (start,) = [params | {"finetune": True} for params in budgeted.start(prior) if params["size_budget"] == 0.6]
    policy = budgeted.space(FixedTrial(start), prior.layers, prior.target, prior)
    others = {
        "size_budget": 0.7,
        "latency_budget": 0.8,
        "sparsity_trade": 4.0,
        "stage1/sensitivity": 2.0,
        "stage2/sensitivity": 2.0,
        "stage3/sensitivity": 2.0,
        "finetune": False,
        "learning_rate": 2e-3,
        "distill/temperature": 2.0,
        "distill/share": 0.3,
    }
    assert others.keys() == start.keys()
    for name, value in others.items():
        changed = budgeted.space(FixedTrial(start | {name: value}), prior.layers, prior.target, prior)
        assert changed.key() != policy.key(), name


def test_a_larger_size_budget_position_is_a_smaller_file() -> None:
    prior = made("resnet20")
    start = budgeted.start(prior)[0]
    assert start["latency_budget"] == 0
    sizes = []
    for position in (0.0, 0.25, 0.5, 0.75, 1.0):
        trial = FixedTrial(start | {"size_budget": position})
        sizes.append(prior.size_bytes(budgeted.space(trial, prior.layers, prior.target, prior)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3 * sizes[-1]


def test_a_larger_latency_budget_position_is_a_quicker_file() -> None:
    prior = made("resnet20")
    start = budgeted.start(prior)[0]
    times = []
    for position in (0.0, 0.25, 0.5, 0.75, 1.0):
        trial = FixedTrial(start | {"latency_budget": position})
        times.append(prior.latency_ms(budgeted.space(trial, prior.layers, prior.target, prior)))
        assert times[-1] <= prior.latency_at(position) * (1 + 1e-9)
    assert times == sorted(times, reverse=True)
    assert times[0] > 1.4 * times[-1]


def test_steps_are_fixed_or_chosen() -> None:
    prior = made("vgg")
    assert {policy.finetune.steps for _, policy in drawn(prior, 10, budgeted.make(steps=70))} == {0, 70}
    several = budgeted.make(steps=(7, 9))
    for space in (several, pickle.loads(pickle.dumps(several))):
        assert is_guided(space)
        found = drawn(prior, 20, space)
        assert {policy.finetune.steps for _, policy in found} == {0, 7, 9}
        assert found[0][0].distributions["steps"] == CategoricalDistribution((7, 9))
    assert getattr(several, "__name__", "") == "space"


def test_a_prior_of_another_network_is_an_error() -> None:
    with pytest.raises(InputError, match="another network"):
        budgeted.space(FixedTrial(budgeted.start(made("vgg"))[0]), resnet20(), Target(), made("vgg"))


def test_a_runtime_without_integers_is_offered_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MENUS, "floats", FLOATS)
    prior = made("vgg", runtime="floats")
    for _, policy in drawn(prior, 5):
        assert {how.weight_bits for how in policy.layers.values()} == {None}
        assert policy.channel_sparsity


# --- where it begins


@pytest.mark.parametrize("net", list(NETS))
def test_it_begins_along_the_whole_front(net: str) -> None:
    prior = made(net)
    start = budgeted.start(prior)
    policies = [budgeted.space(FixedTrial(params), prior.layers, prior.target, prior) for params in start]
    assert len({policy.key() for policy in policies}) == len(start)
    if net == "one_linear":
        return
    assert 10 <= len(start) <= 12
    assert not any(policy.finetune.steps for policy in policies), "nothing is trained before there is a front"
    sizes = [prior.size_bytes(policy) for policy in policies]
    assert max(sizes) > 2 * min(sizes)
    times = [prior.latency_ms(policy) for policy in policies]
    assert max(times) > 1.25 * min(times)
    assert {policy.distill.temperature for policy in policies if policy.distill} == {4.0}


def test_it_is_found_by_name() -> None:
    assert load_space("budgeted") is budgeted.space
    assert load_start("budgeted") is budgeted.start


@pytest.mark.parametrize(("space", "start"), [(budgeted.space, budgeted.start), (joint.space, joint.start)])
def test_a_search_begins_with_what_the_prior_says(space: Space, start: object, tmp_path: Path) -> None:
    prior = made("vgg")
    baseline = uncompressed(prior.layers, prior.target)
    experiment = Experiment(task=ToyTask(), space=space, start=start, budget=Budget(trials=20))  # type: ignore[arg-type]
    search = Search(experiment, prior.layers, baseline, study=tmp_path / "study.log", prior=prior)
    asked = search.ask()
    assert asked is not None
    assert experiment.needs_prior
    wanted = (budgeted if space is budgeted.space else joint).start(prior)[0]
    stored = optuna.load_study(study_name="autocompress", storage=search_storage(tmp_path / "study.log")).trials[0]
    assert stored.params | wanted == stored.params


def search_storage(file: Path) -> optuna.storages.BaseStorage:
    from autocompress.study import open_journal

    return open_journal(file)


# --- a raw space begun by the prior


@pytest.mark.parametrize("net", list(NETS))
def test_the_joint_space_begins_near_the_policies_of_the_prior(net: str) -> None:
    prior = made(net)
    start = joint.start(prior)
    policies = []
    for params in start:
        study = optuna.create_study(sampler=RandomSampler(seed=0))
        study.enqueue_trial(params)
        policies.append(joint.space(study.ask(), prior.layers, prior.target))
    if net == "one_linear":
        return
    assert 8 <= len(start) <= 12
    assert len({policy.key() for policy in policies}) >= len(start) - 1
    sizes = [prior.size_bytes(policy) for policy in policies]
    assert max(sizes) > 2 * min(sizes)
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    others = [joint.space(study.ask(), prior.layers, prior.target) for _ in range(400)]
    for policy, size in zip(policies, sizes, strict=True):
        as_small = [prior.divergence(other) for other in others if prior.size_bytes(other) <= size]
        assert sum(divergence < prior.divergence(policy) for divergence in as_small) <= len(as_small) / 10


def test_levels_and_offsets_give_the_policy_itself_where_the_space_has_it() -> None:
    prior = made("vgg")
    policy = joint.space(FixedTrial(joint.start(prior)[3] | {"steps": 100}), prior.layers, prior.target)
    again = joint.space(
        FixedTrial(joint.nearest_params(policy, prior.layers, prior.target) | {"steps": 100}), prior.layers, prior.target
    )
    assert again.layers == policy.layers
    assert again.channel_sparsity == policy.channel_sparsity
