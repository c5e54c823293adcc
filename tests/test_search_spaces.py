import pickle
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, Trial

import search_spaces
from autocompress.errors import ExperimentError, UnknownNameError
from autocompress.experiment import Budget, Experiment, Space
from autocompress.layer import Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.search import Search
from autocompress.space import ENDS_BITS, load_space, nearest
from autocompress.target import MENUS, Menu, Target
from autocompress.testing import ToyTask
from search_spaces import joint, mixed_precision, per_layer, per_stage, uniform
from search_spaces.per_stage import stages
from tests.nets import one_linear, resnet20, vgg

NAMES = ["joint", "mixed_precision", "per_layer", "per_stage", "uniform"]
GUIDED = ["budgeted"]  # see test_budgeted.py
NETS: dict[str, Callable[[], Layers]] = {"vgg": vgg, "resnet20": resnet20, "one_linear": one_linear}

# Runtimes that can do less than the one we have.
LESSER = {
    "four or eight": Menu(weight_bits=(8, 4, None), activation_bits=(8, None), weight_sparsity=False, channel_multiple=1),
    "integers only": Menu(weight_bits=(8,), activation_bits=(8,), weight_sparsity=True, channel_multiple=16),
    "weights only": Menu(weight_bits=(3, 4, None), activation_bits=(None,), weight_sparsity=True, channel_multiple=8),
    "floats only": Menu(weight_bits=(None,), activation_bits=(None,), weight_sparsity=False, channel_multiple=8),
}


@pytest.fixture(params=["onnxruntime", *LESSER])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    for name, menu in LESSER.items():
        monkeypatch.setitem(MENUS, name, menu)
    return Target(runtime=request.param)


@pytest.fixture(params=list(NETS))
def layers(request: pytest.FixtureRequest) -> Layers:
    return NETS[request.param]()


def drawn(space: Space, layers: Layers, target: Target, count: int = 30) -> list[tuple[Trial, Policy]]:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(trial, space(trial, layers, target)) for trial in trials]


def test_these_are_all() -> None:
    assert sorted(module.name for module in pkgutil.iter_modules(search_spaces.__path__)) == sorted(NAMES + GUIDED)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_asked_every_time_with_the_same_range(name: str, layers: Layers, target: Target) -> None:
    first, *rest = [trial for trial, _ in drawn(load_space(name), layers, target)]
    for trial in rest:
        assert trial.distributions == first.distributions
        assert list(trial.distributions) == list(first.distributions)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_fits_the_network_and_the_target(name: str, layers: Layers, target: Target) -> None:
    for _, policy in drawn(load_space(name), layers, target):
        policy.check(layers, target.menu)
        canonical = policy.canonical(layers, target.menu)
        assert canonical.canonical(layers, target.menu) == canonical
        assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_alone_give_the_policy_again(name: str, layers: Layers, target: Target) -> None:
    space = load_space(name)
    for trial, policy in drawn(space, layers, target, 10):
        assert space(FixedTrial(trial.params), layers, target) == policy


@pytest.mark.parametrize(
    ("name", "of_vgg", "of_resnet20"),
    [
        ("uniform", 5, 5),
        ("per_stage", 5 + 3 + 4 + 4, 5 + 3 + 4 + 4),
        ("per_layer", 4 + 3 + 4, 4 + 12 + 20),
        ("mixed_precision", 3 + 2 * 4 + 2, 3 + 2 * 20 + 2),
        ("joint", 12 + 3 + 2 * 4, 12 + 12 + 2 * 20 + 1 + 9),
    ],
)
def test_as_many_parameters_as_it_says(name: str, of_vgg: int, of_resnet20: int) -> None:
    for layers, count in ((vgg(), of_vgg), (resnet20(), of_resnet20)):
        ((trial, _),) = drawn(load_space(name), layers, Target(), 1)
        assert len(trial.params) == count


@pytest.mark.parametrize("name", NAMES)
def test_policies_differ_and_are_of_many_sizes(name: str) -> None:
    """Drawn at random, policies for a deep network must not all be about as heavy."""
    layers = resnet20()
    weights = {layer.name: layer.params for layer in layers}
    kept = []
    for _, policy in drawn(load_space(name), layers, Target()):
        groups = {group: 1 - share for group, share in policy.channel_sparsity.items()}
        kept.append(
            sum(
                weights[layer.name]
                * groups.get(layer.group or "", 1.0)
                * (setting.weight_bits or 32)
                * (1 - setting.weight_sparsity)
                for layer in layers
                for setting in [policy.layers[layer.name]]
            )
        )
    assert len({policy.key() for _, policy in drawn(load_space(name), layers, Target())}) > 20
    assert max(kept) > 2 * min(kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_and_the_last_layer_keep_enough_bits(name: str) -> None:
    for layers in (vgg(), resnet20()):
        for _, policy in drawn(load_space(name), layers, Target()):
            for end in layers.ends:
                assert (policy.layers[end].weight_bits or 32) >= ENDS_BITS


@pytest.mark.parametrize("name", ["uniform", "per_stage", "mixed_precision", "joint"])
def test_the_layers_between_get_every_width_on_the_menu(name: str) -> None:
    widths = {policy.layers["conv2"].weight_bits for _, policy in drawn(load_space(name), vgg(), Target(), 200)}
    assert widths == set(range(2, Target().menu.integer_weight_bits + 1))


def test_uniform_treats_all_alike() -> None:
    for _, policy in drawn(uniform.space, resnet20(), Target()):
        assert len(set(policy.channel_sparsity.values())) == 1
        assert len({setting for name, setting in policy.layers.items() if name not in resnet20().ends}) == 1
        assert {policy.layers[end].weight_bits for end in resnet20().ends} == {Target().menu.integer_weight_bits}


def test_stages_are_layers_of_one_resolution() -> None:
    of_layer = stages(resnet20())
    assert {name: of_layer[name] for name in ("conv1", "layer1.2.conv2", "layer2.0.conv1", "layer3.2.conv2", "linear")} == {
        "conv1": "stage1",
        "layer1.2.conv2": "stage1",
        "layer2.0.conv1": "stage2",
        "layer3.2.conv2": "stage3",
        "linear": "stage4",
    }
    assert list(stages(vgg()).values()) == ["stage1", "stage2", "stage3", "stage4"]


def test_per_stage_treats_a_stage_alike() -> None:
    layers = resnet20()
    of_layer = stages(layers)
    for _, policy in drawn(per_stage.space, layers, Target()):
        for stage in ("stage1", "stage2", "stage3"):
            inner = [policy.layers[name] for name, its in of_layer.items() if its == stage and name not in layers.ends]
            assert len(set(inner)) == 1
            assert len({share for name, share in policy.channel_sparsity.items() if of_layer[name] == stage}) == 1


def test_per_layer_leaves_bits_alone_and_mixed_precision_everything_else() -> None:
    for _, policy in drawn(per_layer.space, resnet20(), Target()):
        assert {(setting.weight_bits, setting.activation_bits) for setting in policy.layers.values()} == {(7, 8)}
    for _, policy in drawn(mixed_precision.space, resnet20(), Target()):
        assert not policy.channel_sparsity
        assert not any(setting.weight_sparsity for setting in policy.layers.values())


def test_mixed_precision_asks_linear_layers_for_groups_and_ranges() -> None:
    for layers, name, sizes in ((vgg(), "head", {32, 64, 128}), (resnet20(), "linear", {32})):
        policies = [policy for _, policy in drawn(mixed_precision.space, layers, Target(), 60)]
        assert {policy.layers[name].group_size for policy in policies} == {None, *sizes}
        for policy in policies:
            assert {setting.group_size for other, setting in policy.layers.items() if other != name} == {None}
            assert policy.layers[name].group_size is None or policy.layers[name].activation_bits is None
        rounded = [policy.layers[name] for policy in policies if policy.layers[name].activation_bits]
        assert {setting.activation_range for setting in rounded} == {"static", "dynamic"}


def test_of_few_inputs_nobody_asks_for_groups() -> None:
    for trial, _ in drawn(mixed_precision.space, one_linear(), Target(), 5):
        assert not any(name.endswith("group_size") for name in trial.params)


def test_joint_asks_for_everything() -> None:
    policies = [policy for _, policy in drawn(joint.space, resnet20(), Target(), 60)]
    assert {policy.importance for policy in policies} == {"l1", "l2", "bn_scale", "taylor"}
    assert {policy.finetune.steps for policy in policies} == set(joint.STEPS)
    assert {policy.distill.temperature if policy.distill else None for policy in policies} == {None, 2.0, 4.0, 8.0}
    assert {policy.layers["conv1"].activation_bits for policy in policies} == {8, None}
    assert {policy.layers["layer2.0.conv1"].activation_bits for policy in policies} == {8}
    assert any(policy.distill.hint_share for policy in policies if policy.distill)
    assert len({setting.weight_bits for setting in policies[0].layers.values()}) > 1
    assert len(set(policies[0].channel_sparsity.values())) > 1


def test_levels_alone_begin_a_search_near_something_known() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.enqueue_trial({"weight_bits": 4, "channel_sparsity": 0.5, "weight_sparsity": 0.0, "branches_left_out": 0})
    policy = joint.space(study.ask(), resnet20(), Target())
    inner = [setting for name, setting in policy.layers.items() if name not in resnet20().ends]
    assert {setting.weight_bits for setting in inner} <= {2, 3, 4, 5, 6}
    assert set(policy.channel_sparsity.values()) <= {0.25, 0.375, 0.5, 0.625, 0.75}
    assert {setting.weight_sparsity for setting in inner} <= {0.0, 0.1, 0.2}


def test_branches_of_the_least_rank_are_left_out() -> None:
    layers = resnet20()
    branches = [group.name for group in layers.groups if group.branch]
    ranks = {f"{name}/branch_rank": place / 10 for place, name in enumerate(reversed(branches))}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for count in range(6):
        study.enqueue_trial({"branches_left_out": count, **ranks})
        policy = joint.space(study.ask(), layers, Target())
        gone = [name for name, share in policy.channel_sparsity.items() if share == 1]
        assert sorted(gone) == sorted(branches[len(branches) - count :])
        near = joint.nearest_params(policy, layers, Target())
        assert near["branches_left_out"] == count
        again = joint.space(FixedTrial(near | {"steps": 100}), layers, Target())
        assert {name for name, share in again.channel_sparsity.items() if share == 1} == set(gone)


def test_a_runtime_without_integers_is_offered_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MENUS, "floats", LESSER["floats only"])
    for name in NAMES:
        for _, policy in drawn(load_space(name), vgg(), Target(runtime="floats"), 5):
            assert set(policy.layers.values()) == {LayerPolicy()}


@pytest.mark.parametrize(("wanted", "bits"), [(1, 4), (5, 4), (6, 4), (7, 8), (12, 8)])
def test_the_nearest_width_on_the_menu(wanted: int, bits: int) -> None:
    assert nearest([4, 8], wanted) == bits


@pytest.mark.parametrize("module", [joint, mixed_precision, per_layer, per_stage, uniform])
def test_an_experiment_sets_its_own_steps(module: object) -> None:
    space: Space = module.make(steps=(7, 9))  # type: ignore[attr-defined]
    again: Space = pickle.loads(pickle.dumps(space))
    for made in (space, again):
        assert {policy.finetune.steps for _, policy in drawn(made, vgg(), Target())} == {7, 9}
        assert f"{made.__module__}.{getattr(made, '__name__', '')}" == f"{module.__name__}.space"  # type: ignore[attr-defined]
    ((trial, _),) = drawn(module.make(steps=(7,)), vgg(), Target(), 1)  # type: ignore[attr-defined]
    assert trial.distributions["steps"] == CategoricalDistribution((7,))


def test_channel_shares_lie_on_a_coarse_grid() -> None:
    ((trial, _),) = drawn(uniform.space, vgg(), Target(), 1)
    assert trial.distributions["channel_sparsity"] == FloatDistribution(0.0, 0.875, step=0.125)
    for name in ("per_stage", "per_layer", "joint"):
        for _, policy in drawn(load_space(name), resnet20(), Target()):
            assert all(share * 8 == int(share * 8) for share in policy.channel_sparsity.values())


# --- by name and from files


def test_a_space_is_found_by_name() -> None:
    assert load_space("joint") is joint.space


def test_an_unknown_space_comes_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no search space 'joined'; did you mean 'joint'\?"):
        load_space("joined")


def test_a_users_own_file_works_as_well(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    source = Path(str(uniform.__file__)).read_text()
    own.write_text(source.replace("STEPS = (100, 200, 400)", "STEPS = (11, 22)"))
    space = load_space(str(own))
    experiment = Experiment(task=ToyTask(), space=space, budget=Budget(trials=3))
    baseline = {"size_bytes": 1.0, "latency_ms": 1.0, "accuracy": 1.0}
    asked = Search(experiment, vgg(), baseline, study=tmp_path / "study.log").ask()
    assert asked is not None
    assert asked.policy.finetune.steps in (11, 22)


def test_a_users_own_file_may_have_the_name_of_one_of_ours(tmp_path: Path) -> None:
    shutil.copy(str(uniform.__file__), tmp_path / "joint.py")
    space = load_space(str(tmp_path / "joint.py"))
    assert space is not joint.space
    assert len(drawn(space, vgg(), Target(), 1)[0][0].params) == 5


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no search space file"),
        ("x = 1", "defines no function `space"),
        ("space = 3", "defines no function `space"),
        ("def space(:\n", "line 1: invalid syntax"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_file_without_a_space_says_what_is_wrong(tmp_path: Path, content: str | None, complaint: str) -> None:
    file = tmp_path / "broken.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ExperimentError, match=complaint):
        load_space(str(file))
