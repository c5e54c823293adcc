"""The solver on made tables: budgets, limits, laws of the least divergence, and the best there is on a tiny network."""

import itertools
import math
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import InputError, UnknownNameError
from autocompress.layer import Group, Layer, Layers
from autocompress.objective import Limit
from autocompress.option import SPARSITIES, Option, channel_shares, options
from autocompress.policy import LayerPolicy, Policy
from autocompress.prior import Leaning, Prior
from autocompress.tables import CostTable, LayerCosts, Sensitivity
from autocompress.target import MENUS, Menu, Target
from tests.made import LAYERS
from tests.nets import one_linear, resnet20, vgg
from tests.tables_made import changed, made_chain, made_costs, made_sensitivity

NETS: dict[str, Callable[[], Layers]] = {
    "vgg": vgg,
    "resnet20": resnet20,
    "chain": lambda: made_chain(20),
    "one_linear": one_linear,
}
TARGET = Target()
MENU = TARGET.menu
# The solver is no exact one: so much more divergence than the law allows is forgiven.
TOLERANCE = 0.01
TOLERANCE_OF_BOTH = 0.1  # 0.4 % on average


@cache
def made(net: str, seed: int = 0) -> Prior:
    layers = NETS[net]()
    return Prior(layers, TARGET, made_sensitivity(layers, MENU, seed=seed, noise=0.3), made_costs(layers, TARGET))


def prior_of(layers: Layers, sensitivity: Sensitivity, *limits: str, target: Target = TARGET) -> Prior:
    costs = made_costs(layers, target)
    baseline = {"size_bytes": costs.size_bytes(Policy(), layers), "latency_ms": costs.latency_ms(Policy(), layers)}
    return Prior(layers, target, sensitivity, costs, limits=[Limit.parse(limit) for limit in limits], baseline=baseline)


def at(prior: Prior, position: float) -> float:
    """The size at a position from the mildest policy to the smallest."""
    largest, smallest = prior.reach.size_bytes
    return largest * math.pow(smallest / largest, position)


positions = st.floats(0.0, 1.0)
nets = st.sampled_from(list(NETS))
seeds = st.integers(0, 3)
leanings = st.builds(
    Leaning,
    latency_weight=st.none() | st.floats(0.0, 1.0),
    sparsity_trade=st.floats(0.25, 4.0),
    stages=st.tuples(*[st.floats(0.5, 2.0)] * 3),
)


@given(nets, seeds, positions, leanings)
@settings(max_examples=25, deadline=None)
def test_a_budget_of_bytes_is_met(net: str, seed: int, position: float, leaning: Leaning) -> None:
    prior = made(net, seed)
    policy = prior.solve(at(prior, position), leaning=leaning)
    policy.check(prior.layers, MENU)
    assert prior.size_bytes(policy) <= at(prior, position) * (1 + 1e-9)


@given(nets, seeds, positions, positions, leanings)
@settings(max_examples=20, deadline=None)
def test_budgets_of_bytes_and_time_are_met_together(
    net: str, seed: int, position: float, other: float, leaning: Leaning
) -> None:
    prior = made(net, seed)
    # What some policy of least divergence takes can be had, and so can more.
    some = prior.solve(at(prior, position), leaning=Leaning(latency_weight=other))
    size, ms = prior.size_bytes(some) * 1.02, prior.latency_ms(some) * 1.02
    policy = prior.solve(size, ms, leaning=leaning)
    assert prior.size_bytes(policy) <= size * (1 + 1e-9)
    assert prior.latency_ms(policy) <= ms * (1 + 1e-9)


@pytest.mark.parametrize("net", ["vgg", "resnet20", "chain"])
def test_with_both_budgets_nothing_better_is_found_by_leaning_towards_time(net: str) -> None:
    """Whatever meets both of them by chance is no better than what was made to."""
    prior = made(net)
    for position in (0.2, 0.5):
        size = at(prior, position)
        others = [prior.solve(size, leaning=Leaning(latency_weight=weight / 5)) for weight in range(6)]
        for other in others:
            both = prior.solve(size, prior.latency_ms(other))
            assert prior.divergence(both) <= prior.divergence(other) * (1 + TOLERANCE_OF_BOTH)


def test_both_budgets_are_met_by_a_layer_that_gives_up_its_floats() -> None:
    """Size alone would never ask for that."""
    table = changed(made_sensitivity(vgg(), MENU), lambda option, value: 5.0 if option.what == "activation_bits" else value)
    prior = prior_of(vgg(), table)
    size, ms = at(prior, 0.1), prior.reach.latency_ms[1] * 1.3
    assert prior.latency_ms(prior.solve(size)) > ms
    policy = prior.solve(size, ms)
    assert prior.size_bytes(policy) <= size
    assert prior.latency_ms(policy) <= ms


def test_a_layer_that_is_quicker_in_floats_gets_them_when_time_counts() -> None:
    """A first layer of few channels: to round the inputs of the network for it takes longer than the layer itself."""
    costs = made_costs(vgg(), TARGET)
    first, *others = costs.layers
    slower = tuple(tuple(ms + 0.1 for ms in row) for row in first.float_ms)
    slow = LayerCosts(**dict(first) | {"int8_ms": slower})
    prior = Prior(vgg(), TARGET, made_sensitivity(vgg(), MENU), CostTable(**dict(costs) | {"layers": (slow, *others)}))
    policy = prior.solve(latency_ms=1.05 * prior.reach.latency_ms[1])
    assert policy.layers[first.name].activation_bits is None
    assert all(policy.layers[layer.name].activation_bits == 8 for layer in others)


@given(nets, seeds, positions)
@settings(max_examples=15, deadline=None)
def test_a_budget_of_time_alone_is_met(net: str, seed: int, position: float) -> None:
    prior = made(net, seed)
    slowest, fastest = prior.reach.latency_ms
    ms = slowest * math.pow(fastest / slowest, position)
    assert prior.latency_ms(prior.solve(latency_ms=ms)) <= ms * (1 + 1e-9)


@given(nets, seeds, positions, positions)
@settings(max_examples=25, deadline=None)
def test_more_bytes_never_cost_more_divergence(net: str, seed: int, one: float, other: float) -> None:
    prior = made(net, seed)
    larger, smaller = (prior.solve(at(prior, position)) for position in sorted((one, other)))
    assert prior.divergence(larger) <= prior.divergence(smaller) * (1 + TOLERANCE) + 1e-9


@given(nets, seeds, positions)
@settings(max_examples=15, deadline=None)
def test_a_second_budget_never_costs_less_divergence(net: str, seed: int, position: float) -> None:
    prior = made(net, seed)
    # Of what is worth searching: far beyond, where hardly a branch is left, single changes do not find the best state.
    size = prior.size_at(position)
    alone = prior.solve(size)
    both = prior.solve(size, prior.latency_ms(alone) * 0.9)
    if prior.size_bytes(both) <= size and prior.latency_ms(both) <= prior.latency_ms(alone) * 0.9:
        assert prior.divergence(both) >= prior.divergence(alone) * (1 - TOLERANCE) - 1e-9


@given(st.sampled_from(["vgg", "resnet20"]), seeds, positions, st.data())
@settings(max_examples=12, deadline=None)
def test_what_is_more_sensitive_is_treated_more_gently(net: str, seed: int, position: float, data: st.DataObject) -> None:
    """By the divergence that its options were measured with: of the best policies that is a law."""
    layers = NETS[net]()
    plain = made_sensitivity(layers, MENU, seed=seed, noise=0.3)
    name = data.draw(st.sampled_from([layer.name for layer in layers]))
    prior = prior_of(layers, plain)
    dearer = prior_of(layers, changed(plain, lambda option, value: value * (10 if option.name == name else 1)))
    budget = at(prior, position)
    before, after = (its_own(plain, solver.solve(budget), layers, name) for solver in (prior, dearer))
    assert after <= before + TOLERANCE * prior.divergence(prior.solve(budget)) + 1e-9


def its_own(sensitivity: Sensitivity, policy: Policy, layers: Layers, name: str) -> float:
    """The divergence of the options that a policy takes of one layer and of the group of that name."""
    others = changed(sensitivity, lambda option, value: value if option.name == name else 0.0)
    return prior_of(layers, others).divergence(policy)


def test_a_layer_ten_times_as_sensitive_gets_more_bits() -> None:
    plain = made_sensitivity(vgg(), MENU)
    dearer = changed(plain, lambda option, value: value * (10 if option.name == "conv2" else 1))
    budget = at(prior_of(vgg(), plain), 0.5)
    before, after = (prior_of(vgg(), table).solve(budget) for table in (plain, dearer))
    assert (after.layers["conv2"].weight_bits or 0) > (before.layers["conv2"].weight_bits or 0)
    assert after.channel_sparsity.get("conv2", 0.0) <= before.channel_sparsity["conv2"]


def test_sparsity_that_counts_more_is_used_less() -> None:
    prior = made("resnet20")
    policies = [prior.solve(at(prior, 0.5), leaning=Leaning(sparsity_trade=trade)) for trade in (0.05, 1.0, 4.0)]
    channels = [prior.divergence(Policy(channel_sparsity=policy.channel_sparsity)) for policy in policies]
    assert channels[0] > channels[1] > channels[2]
    without_groups = resnet20().model_copy(update={"groups": ()})
    alone = prior_of(without_groups, of_layers(made_sensitivity(resnet20(), MENU)))
    policies = [alone.solve(at(alone, 0.7), leaning=Leaning(sparsity_trade=trade)) for trade in (0.25, 1.0, 4.0)]
    zeros = [sum(how.weight_sparsity for how in policy.layers.values()) for policy in policies]
    assert zeros[0] > zeros[1] > zeros[2]


def of_layers(sensitivity: Sensitivity) -> Sensitivity:
    entries = tuple(entry for entry in sensitivity.entries if entry.option.what != "channel_sparsity")
    return sensitivity.model_copy(update={"entries": entries})


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_third_of_the_network_that_counts_more_keeps_more(stage: int) -> None:
    prior = made("chain")
    budget = at(prior, 0.5)
    third = list(prior.layers)[stage * 7 : stage * 7 + 7]

    def bits(stages: tuple[float, float, float]) -> float:
        policy = prior.solve(budget, leaning=Leaning(stages=stages))
        kept = [1 - policy.channel_sparsity.get(layer.name, 0.0) for layer in third]
        return sum(
            (policy.layers[layer.name].weight_bits or 32) * share * (1 - policy.layers[layer.name].weight_sparsity)
            for layer, share in zip(third, kept, strict=True)
        )

    dearer = tuple(8.0 if place == stage else 1.0 for place in range(3))
    assert bits((dearer[0], dearer[1], dearer[2])) > bits((1.0, 1.0, 1.0))


def test_time_that_counts_makes_faster_policies_of_the_same_size() -> None:
    prior = made("resnet20")
    for position in (0.3, 0.5, 0.7):
        times = [
            prior.latency_ms(prior.solve(at(prior, position), leaning=Leaning(latency_weight=weight)))
            for weight in (0.0, 0.5, 1.0)
        ]
        assert times[0] >= times[1] > times[2]


@given(st.sampled_from(["vgg", "resnet20"]), seeds, positions, leanings, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_an_option_without_a_finite_divergence_is_never_taken(
    net: str, seed: int, position: float, leaning: Leaning, random: "np.random.Generator"
) -> None:
    layers = NETS[net]()
    whole = made_sensitivity(layers, MENU, seed=seed)
    table = changed(whole, lambda option, value: None if random.random() < 0.4 and option.value != 8 else value)
    bad = {(entry.option.what, entry.option.name, entry.option.value) for entry in table.entries if entry.value is None}
    prior = prior_of(layers, table)
    policy = prior.solve(at(prior, position), leaning=leaning)
    assert math.isfinite(prior.divergence(policy))
    taken = {("channel_sparsity", name, share) for name, share in policy.channel_sparsity.items()}
    taken |= {("weight_bits", name, float(how.weight_bits or 32)) for name, how in policy.layers.items()}
    taken |= {("weight_sparsity", name, how.weight_sparsity) for name, how in policy.layers.items()}
    assert not taken & bad


def test_floats_where_no_integer_has_a_finite_divergence() -> None:
    table = changed(
        made_sensitivity(vgg(), MENU),
        lambda option, value: None if (option.what, option.name) == ("weight_bits", "conv2") else value,
    )
    prior = prior_of(vgg(), table)
    for position in (0.0, 0.5, 1.0):
        assert prior.solve(at(prior, position)).layers["conv2"].weight_bits is None


def test_a_layer_without_any_usable_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    menu = Menu(weight_bits=(4, 8), activation_bits=(8,), weight_sparsity=False, channel_multiple=8)
    monkeypatch.setitem(MENUS, "integers", menu)
    table = changed(made_sensitivity(vgg(), menu), lambda option, value: None if option.name == "head" else value)
    with pytest.raises(InputError, match="layer 'head': no number of bits has a finite divergence"):
        prior_of(vgg(), table, target=Target(runtime="integers"))


def test_a_dent_in_what_was_measured_is_no_gain() -> None:
    """At 3 bits the outputs seem to move less than at 8: noise. Fewer bits than are needed are not taken for it."""
    table = changed(
        made_sensitivity(vgg(), MENU),
        lambda option, value: 0.0 if (option.what, option.value) == ("weight_bits", 3.0) else value,
    )
    prior = prior_of(vgg(), table)
    assert {how.weight_bits for how in prior.solve().layers.values()} == {MENU.integer_weight_bits}
    assert prior.divergence(Policy(layers={"conv2": LayerPolicy(weight_bits=3)})) >= prior.divergence(
        Policy(layers={"conv2": LayerPolicy(weight_bits=4)})
    )


def test_a_dent_in_the_costs_is_stepped_over() -> None:
    """A quarter of zeros saves nothing at 2 bits, for the mask takes more; most of them do."""
    table = changed(made_sensitivity(one_linear(), MENU), lambda option, value: value * (option.what != "weight_sparsity"))
    layers = Layers(
        layers=(one_linear().layers[0].model_copy(update={"weight_shape": (400, 800), "params": 320_400}),), groups=()
    )
    smallest = prior_of(layers, table).smallest().layers["fc"]
    assert (smallest.weight_bits, smallest.weight_sparsity) == (2, max(SPARSITIES))


# --- activations


def test_activations_are_integers_and_nothing_is_cut_without_a_budget() -> None:
    for net in NETS:
        policy = made(net).solve()
        assert {(how.weight_bits, how.activation_bits) for how in policy.layers.values()} == {(MENU.integer_weight_bits, 8)}
        assert not policy.channel_sparsity


def test_a_layer_whose_activations_are_dear_to_round_keeps_floats_while_time_permits() -> None:
    table = changed(
        made_sensitivity(vgg(), MENU),
        lambda option, value: 5.0 if (option.what, option.name) == ("activation_bits", "conv2") else value,
    )
    prior = prior_of(vgg(), table)
    for policy in (prior.solve(), prior.solve(at(prior, 0.4))):
        assert {name for name, how in policy.layers.items() if how.activation_bits is None} == {"conv2"}
    fastest = prior.solve(latency_ms=prior.reach.latency_ms[1])
    assert fastest.layers["conv2"].activation_bits == 8


@given(positions, positions, st.sets(st.sampled_from([layer.name for layer in vgg()])))
@settings(max_examples=25, deadline=None)
def test_borders_between_floats_and_integers_are_part_of_the_time(position: float, other: float, dear: set[str]) -> None:
    table = changed(
        made_sensitivity(vgg(), MENU),
        lambda option, value: 5.0 if option.what == "activation_bits" and option.name in dear else value,
    )
    costs = made_costs(vgg(), TARGET, border_ms=0.01)
    prior = Prior(vgg(), TARGET, table, costs)
    slowest, fastest = prior.latency_ms(prior.solve()), prior.reach.latency_ms[1]
    ms = slowest * math.pow(fastest / slowest, position)
    for policy in (prior.solve(latency_ms=ms), prior.solve(at(prior, other / 2), ms)):
        assert prior.latency_ms(policy) <= ms * (1 + 1e-9)


def test_a_single_float_layer_is_not_worth_its_borders() -> None:
    """Rounding is worth something to save the time of a layer, more to save that of its borders too."""
    cheap, dear = (
        Prior(vgg(), TARGET, table, made_costs(vgg(), TARGET, border_ms=border))
        for border in (0.0, 0.5)
        for table in [changed(made_sensitivity(vgg(), MENU), lambda option, value: value + 1e-2 * (option == HEAD_ROUNDED))]
    )
    assert cheap.solve().layers["head"].activation_bits is None
    assert dear.solve().layers["head"].activation_bits == 8


def test_a_network_that_is_quicker_in_floats_throughout_has_no_integers() -> None:
    """No layer alone would give its integers up: the borders on both sides of it take longer than what it saves."""
    costs = made_costs(vgg(), TARGET, border_ms=0.5)
    slow = [
        LayerCosts(**dict(layer) | {"int8_ms": tuple(tuple(ms + 0.1 for ms in row) for row in layer.float_ms)})
        for layer in costs.layers
    ]
    prior = Prior(vgg(), TARGET, made_sensitivity(vgg(), MENU), CostTable(**dict(costs) | {"layers": tuple(slow)}))
    uncompressed = prior.latency_ms(Policy())
    assert prior.reach.latency_ms[0] == pytest.approx(uncompressed)
    for policy in (prior.solve(), prior.solve(at(prior, 0.5)), prior.solve(latency_ms=0.9 * uncompressed), prior.smallest()):
        assert {how.activation_bits for how in policy.layers.values()} == {None}
        assert prior.latency_ms(policy) <= uncompressed * (1 + 1e-9)
    assert prior.latency_ms(prior.solve(latency_ms=0.9 * uncompressed)) <= 0.9 * uncompressed


HEAD_ROUNDED = Option(what="activation_bits", name="head", value=8)


def test_activations_that_cannot_be_rounded_stay_floats() -> None:
    table = changed(made_sensitivity(vgg(), MENU), lambda option, value: None if option.what == "activation_bits" else value)
    policy = prior_of(vgg(), table).solve(10_000)
    assert {how.activation_bits for how in policy.layers.values()} == {None}


@pytest.mark.parametrize(
    "menu",
    [
        Menu(weight_bits=(8, 4, None), activation_bits=(8, None), weight_sparsity=False, channel_multiple=1),
        Menu(weight_bits=(8,), activation_bits=(8,), weight_sparsity=True, channel_multiple=16),
        Menu(weight_bits=(3, 4, None), activation_bits=(None,), weight_sparsity=True, channel_multiple=8),
        Menu(weight_bits=(None,), activation_bits=(None,), weight_sparsity=False, channel_multiple=8),
    ],
)
def test_policies_are_on_the_menu(menu: Menu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MENUS, "lesser", menu)
    target = Target(runtime="lesser")
    for layers in (vgg(), one_linear()):
        prior = prior_of(layers, made_sensitivity(layers, menu), target=target)
        for position in (0.0, 0.3, 0.7, 1.0):
            policy = prior.solve(at(prior, position))
            policy.check(layers, menu)
            assert prior.size_bytes(policy) <= at(prior, position) * (1 + 1e-9)


# --- limits


@given(st.sampled_from(["vgg", "resnet20", "chain"]), positions, st.none() | positions, leanings)
@settings(max_examples=10, deadline=None)
def test_every_policy_keeps_to_the_limits(net: str, position: float, other: float | None, leaning: Leaning) -> None:
    prior = limited(net)
    ms = None if other is None else prior.reach.latency_ms[0] * (1 - other / 2)
    for size in (None, prior.size_at(position), at(prior, position)):
        policy = prior.solve(size, ms, leaning=leaning)
        assert prior.size_bytes(policy) <= 0.15 * full(net).size_bytes(Policy()) * (1 + 1e-9)
        assert prior.latency_ms(policy) <= 0.3 * full(net).latency_ms(Policy()) * (1 + 1e-9)


@cache
def limited(net: str) -> Prior:
    layers = NETS[net]()
    limits = ("size <= 0.15 * baseline", "latency <= 0.3 * baseline", "accuracy >= baseline - 0.01", "size >= 1 kB")
    prior = prior_of(layers, made_sensitivity(layers, MENU, noise=0.3), *limits)
    assert not prior.unreachable
    return prior


def full(net: str) -> Prior:
    return made(net)


def test_the_mean_error_of_predictions_is_left_to_spare() -> None:
    costs = made_costs(vgg(), TARGET)
    erring = costs.model_copy(update={"size_error": costs.size_error.model_copy(update={"mean": 0.04})})
    limit = Limit.parse("size <= 20 kB")
    table = made_sensitivity(vgg(), MENU)
    exact, careful = (Prior(vgg(), TARGET, table, known, limits=[limit], baseline={}) for known in (costs, erring))
    assert 19_500 < exact.size_bytes(exact.solve()) <= 20_000
    assert 18_800 < careful.size_bytes(careful.solve()) <= 19_200


def test_a_limit_that_cannot_be_met_gives_the_smallest_and_is_named() -> None:
    prior = prior_of(vgg(), made_sensitivity(vgg(), MENU), "size <= 1 kB", "latency <= baseline")
    assert [limit.text for limit in prior.unreachable] == ["size <= 1 kB"]
    assert prior.solve() == prior.solve(50_000) == prior.smallest()
    assert prior.size_bytes(prior.smallest()) == pytest.approx(made_smallest())


def made_smallest() -> float:
    prior = prior_of(vgg(), made_sensitivity(vgg(), MENU))
    return prior.reach.size_bytes[1]


def test_a_budget_that_cannot_be_met_gives_the_smallest() -> None:
    prior = made("vgg")
    assert prior.solve(1.0) == prior.smallest()
    assert prior.solve(1e9, 1e-6) == prior.smallest()


def test_nothing_is_smaller_than_the_smallest() -> None:
    prior = made("vgg")
    least = {group.name: channel_shares(group.channels, 8)[-1] for group in vgg().groups}
    narrow = prior.size_bytes(
        Policy(
            channel_sparsity=least, layers=dict.fromkeys(prior.smallest().layers, LayerPolicy(weight_bits=2, activation_bits=8))
        )
    )
    assert prior.size_bytes(prior.smallest()) <= narrow


# --- the whole front


@pytest.mark.parametrize("net", list(NETS))
def test_a_front_of_policies_no_two_of_which_are_the_same(net: str) -> None:
    prior = made(net)
    front = prior.front(8)
    keys = {policy.canonical(prior.layers, MENU).key() for policy in front}
    assert len(keys) == len(front) > 5
    sizes = [prior.size_bytes(policy) for policy in front]
    assert min(sizes) <= prior.searched[1]
    assert max(sizes) > 0.8 * prior.searched[0]


@pytest.mark.parametrize("net", list(NETS))
def test_what_is_searched_is_neither_lossless_nor_lost(net: str) -> None:
    prior = made(net)
    largest, smallest = prior.searched
    low, high = prior.reach.size_bytes[1], prior.reach.size_bytes[0]
    assert low <= smallest < largest <= high
    assert prior.size_at(0.0) == pytest.approx(largest)
    assert prior.size_at(1.0) == pytest.approx(smallest)
    worst = max(entry.value or 0.0 for entry in made_sensitivity(NETS[net](), MENU, noise=0.3).entries)
    lost = min(1.5 * worst, 0.4)  # nats: beyond half of one nothing is won back
    assert lost <= prior.divergence(prior.solve(smallest)) or smallest == pytest.approx(low)
    assert prior.divergence(prior.solve(smallest)) <= max(0.7, 1.5 * worst)
    assert prior.divergence(prior.solve(largest)) <= 1e-3 * worst or largest == pytest.approx(high)


def test_what_is_searched_is_more_than_one_size_where_limits_leave_nothing_mild() -> None:
    free = made("resnet20")
    tight = Prior(
        free.layers,
        TARGET,
        made_sensitivity(free.layers, MENU, noise=0.3),
        made_costs(free.layers, TARGET),
        limits=[Limit.parse(f"size_bytes <= {1.3 * free.reach.size_bytes[1]:g}")],
        baseline={"size_bytes": 1e6, "latency_ms": 1.0, "accuracy": 0.9},
    )
    assert tight.divergence(tight.solve()) > 0.5
    largest, smallest = tight.searched
    assert smallest < 0.95 * largest


# --- against the best there is


def best_of_all(layers: Layers, sensitivity: Sensitivity, budget: float, ms: float = math.inf) -> float:
    """The least summed divergence of all policies within the budgets: every combination, by the tables alone."""
    costs = made_costs(layers, TARGET)
    counts = [[0.0, *channel_shares(group.channels, 8)] for group in layers.groups]
    forms = [
        LayerPolicy(weight_bits=bits, activation_bits=8, weight_sparsity=z) for bits in range(2, 9) for z in (0.0, *SPARSITIES)
    ]
    integers = {layer.name: forms[0] for layer in layers}
    least = math.inf
    for shares in itertools.product(*counts):
        policy = Policy(channel_sparsity={group.name: share for group, share in zip(layers.groups, shares, strict=True)})
        widths = policy.widths(layers, MENU)
        of_cuts = sum(
            sensitivity.of(Option(what="channel_sparsity", name=name, value=share)) or 0.0
            for name, share in policy.channel_sparsity.items()
            if share
        )
        if costs.latency_ms(policy.model_copy(update={"layers": integers}), layers) > ms:
            continue  # the form of the weights changes no time
        size, divergence = np.zeros(1) + costs.rest_bytes, np.zeros(1) + of_cuts
        for layer in layers:
            its = [costs.layer_bytes(layer.name, *widths[layer.name], form) for form in forms]
            moves = [form_divergence(sensitivity, layer.name, form) for form in forms]
            size = (size[:, None] + np.array(its)[None, :]).ravel()
            divergence = (divergence[:, None] + np.array(moves)[None, :]).ravel()
        fits = divergence[size <= budget]
        least = min(least, fits.min() if len(fits) else math.inf)
    return float(least)


def form_divergence(sensitivity: Sensitivity, name: str, form: LayerPolicy) -> float:
    def of(what: str, value: float) -> float:
        return sensitivity.of(Option.model_validate({"what": what, "name": name, "value": value})) or 0.0

    bits = of("weight_bits", float(form.weight_bits or 0)) + max(0.0, of("activation_bits", 8.0) - of("weight_bits", 8.0))
    return bits + (of("weight_sparsity", form.weight_sparsity) if form.weight_sparsity else 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_good_as_the_best_of_all_policies_of_a_tiny_network(seed: int) -> None:
    sensitivity = made_sensitivity(LAYERS, MENU, seed=seed)
    prior = prior_of(LAYERS, sensitivity)
    for position in (0.25, 0.5, 0.75):
        budget = at(prior, position)
        alone = prior.solve(budget)
        assert prior.divergence(alone) <= best_of_all(LAYERS, sensitivity, budget) * (1 + TOLERANCE)
        ms = 0.8 * prior.latency_ms(alone)
        both = prior.solve(budget, ms)
        assert prior.divergence(both) <= best_of_all(LAYERS, sensitivity, budget, ms) * (1 + TOLERANCE)


# --- tables and speed


def test_tables_of_another_network_are_an_error() -> None:
    with pytest.raises(UnknownNameError, match="no layer in the cost table 'conv1'"):
        Prior(vgg(), TARGET, made_sensitivity(vgg(), MENU), made_costs(one_linear(), TARGET))
    with pytest.raises(UnknownNameError, match="no layer 'fc'"):
        Prior(vgg(), TARGET, made_sensitivity(one_linear(), MENU), made_costs(vgg(), TARGET))
    partly = made_sensitivity(vgg(), MENU)
    partly = partly.model_copy(update={"entries": tuple(entry for entry in partly.entries if entry.option.name != "conv3")})
    with pytest.raises(InputError, match="the sensitivities know nothing of layer 'conv3'"):
        prior_of(vgg(), partly)


@pytest.mark.parametrize(
    "given_badly", [{"latency_weight": 1.5}, {"sparsity_trade": 0.0}, {"stages": (1.0, math.inf, 1.0)}, {"stages": (1.0,)}]
)
def test_a_leaning_that_makes_no_sense_is_an_error(given_badly: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Leaning(**given_badly)  # type: ignore[arg-type]


def test_counts_between_those_that_were_measured_are_interpolated() -> None:
    convolution = Layer(name="wide", kind="conv2d", weight_shape=(256, 3, 3, 3), params=7168, macs=1, group="wide")
    head = Layer(name="head", kind="linear", weight_shape=(10, 256), params=2570, macs=1)
    group = Group(name="wide", channels=256, writers=("wide",), readers={"head": 1})
    layers = Layers(layers=(convolution, head), groups=(group,))
    measured = [option for option in options(layers, MENU) if option.what == "channel_sparsity"]
    kept = [round(256 * (1 - option.value)) for option in measured]
    assert (len(kept), kept[0], kept[-1]) == (12, 248, 8)
    assert max(before - after for before, after in pairwise(kept)) == 24
    prior = Prior(layers, TARGET, made_sensitivity(layers, MENU), made_costs(layers, TARGET))
    known = {count: prior.divergence(Policy(channel_sparsity={"wide": 1 - count / 256})) for count in (*kept, 240)}
    assert 240 not in kept
    assert known[248] < known[240] < known[kept[1]]
    assert math.isfinite(known[8])


def test_divergences_add_up() -> None:
    table = made_sensitivity(vgg(), MENU)
    prior = prior_of(vgg(), table)
    halves = [table.of(Option(what="weight_sparsity", name="conv3", value=share)) or 0.0 for share in (0.5, 0.7)]
    parts = [Option(what="channel_sparsity", name="conv1", value=0.5), Option(what="weight_bits", name="head", value=3)]
    # Beside integer activations 8 bits are stored in 7: the divergence of these, and what the activations add to 8.
    eight, seven = (table.of(Option(what="weight_bits", name="conv2", value=bits)) or 0.0 for bits in (8, 7))
    both = table.of(Option(what="activation_bits", name="conv2", value=8)) or 0.0
    rounded = max(seven, eight) + both - eight
    layers = {
        "head": LayerPolicy(weight_bits=3),
        "conv2": LayerPolicy(weight_bits=8, activation_bits=8),
        "conv3": LayerPolicy(weight_sparsity=0.6),
    }
    summed = sum(table.of(part) or 0.0 for part in parts) + rounded + sum(halves) / 2
    assert prior.divergence(Policy(channel_sparsity={"conv1": 0.49}, layers=layers)) == pytest.approx(summed)
    assert prior.divergence(Policy()) == 0.0


def test_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    prior = made("resnet20")
    sizes = [at(prior, place / 10) for place in range(1, 10)]
    begun = time.process_time()
    for size in sizes:
        prior.solve(size)
    with capsys.disabled():
        print(f"\na policy for ResNet-20: {(time.process_time() - begun) / len(sizes) * 1e3:.0f} ms of CPU time")
