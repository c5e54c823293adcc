from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import InputError, PolicyError, UnknownNameError
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy, kept_channels
from autocompress.target import Menu, Target
from tests.nets import resnet20, vgg

MENU = Target().menu
NETS = {"vgg": vgg(), "resnet20": resnet20()}

shares = st.one_of(st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.9999]), st.floats(0, 1, exclude_max=True))
positive = st.floats(1e-9, 1e9)
layer_policies = st.builds(
    lambda bits, integer, sparsity: LayerPolicy(
        weight_bits=bits, activation_bits=8 if integer and bits else None, weight_sparsity=sparsity
    ),
    st.none() | st.integers(2, 8),
    st.booleans(),
    shares,
)
finetunes = st.builds(
    Finetune,
    steps=st.integers(0, 1000),
    learning_rate=positive,
    weight_decay=st.floats(0, 1),
    batch_size=st.integers(1, 512),
)
distills = st.builds(
    lambda temperature, share, rest: Distill(temperature=temperature, share=share, hint_share=rest * (1 - share)),
    positive,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
nets = st.sampled_from(sorted(NETS))


def policies(net: str) -> st.SearchStrategy[Policy]:
    layers = NETS[net]
    return st.builds(
        Policy,
        channel_sparsity=st.dictionaries(st.sampled_from([group.name for group in layers.groups]), shares),
        importance=st.sampled_from(["l1", "l2", "bn_scale", "taylor"]),
        layers=st.dictionaries(st.sampled_from([layer.name for layer in layers]), layer_policies),
        finetune=finetunes,
        distill=st.none() | distills,
    )


@given(nets.flatmap(policies))
def test_a_policy_survives_json(policy: Policy) -> None:
    back = Policy.from_json(policy.to_json())
    assert back == policy
    assert back.key() == policy.key()


@given(nets.flatmap(lambda net: st.tuples(policies(net), policies(net))))
def test_equal_policies_and_only_those_share_a_key(pair: tuple[Policy, Policy]) -> None:
    left, right = pair
    assert (left == right) == (left.key() == right.key())


@given(policies("vgg"), st.randoms())
def test_the_order_in_which_layers_are_named_does_not_matter(policy: Policy, random: Random) -> None:
    names = list(policy.layers)
    random.shuffle(names)
    other = policy.model_copy(update={"layers": {name: policy.layers[name] for name in names}})
    assert other.key() == policy.key()


def test_no_zero_is_different_from_another() -> None:
    assert Policy(channel_sparsity={"conv1": -0.0}).key() == Policy(channel_sparsity={"conv1": 0.0}).key()
    assert Policy(layers={"head": LayerPolicy(weight_sparsity=-0.0)}).key() == Policy(layers={"head": LayerPolicy()}).key()


@pytest.mark.parametrize(
    "other",
    [
        Policy(importance="l2"),
        Policy(channel_sparsity={"conv1": 0.5}),
        Policy(layers={"conv1": LayerPolicy(weight_bits=4)}),
        Policy(layers={"conv1": LayerPolicy(group_size=32)}),
        Policy(finetune=Finetune(steps=201)),
        Policy(distill=Distill()),
    ],
)
def test_whatever_differs_changes_the_key(other: Policy) -> None:
    assert other.key() != Policy().key()
    assert len(other.key()) == 16


@given(nets.flatmap(lambda net: st.tuples(st.just(net), policies(net))))
def test_canonical_is_idempotent_and_keeps_the_same_channels(drawn: tuple[str, Policy]) -> None:
    net, policy = drawn
    layers = NETS[net]
    canonical = policy.canonical(layers, MENU)
    canonical.check(layers, MENU)
    assert canonical.canonical(layers, MENU) == canonical
    for group in layers.groups:
        before = kept_channels(group.channels, policy.channel_sparsity.get(group.name, 0.0), MENU.channel_multiple)
        after = kept_channels(group.channels, canonical.channel_sparsity.get(group.name, 0.0), MENU.channel_multiple)
        assert before == after


@given(nets, shares, shares)
def test_canonical_policies_that_keep_the_same_channels_and_only_those_share_a_key(net: str, one: float, other: float) -> None:
    layers = NETS[net]
    for group in layers.groups:
        same = len({kept_channels(group.channels, share, MENU.channel_multiple) for share in (one, other)}) == 1
        keys = {Policy(channel_sparsity={group.name: share}).canonical(layers, MENU).key() for share in (one, other)}
        assert (len(keys) == 1) == same


def test_canonical_drops_what_cannot_matter() -> None:
    idle = Policy(
        channel_sparsity={"conv1": 0.01},
        importance="taylor",
        layers={"conv2": LayerPolicy()},
        finetune=Finetune(steps=0, learning_rate=0.5),
        distill=Distill(),
    )
    assert idle.canonical(vgg(), MENU) == Policy(finetune=Finetune(steps=0))


def test_canonical_drops_a_teacher_whose_word_counts_for_nothing() -> None:
    plain = Policy()
    assert Policy(distill=Distill(share=0.0, hint_share=0.0)).canonical(vgg(), MENU) == plain
    hints_only = Policy(distill=Distill(share=0.0, hint_share=0.5, temperature=9.0)).canonical(vgg(), MENU)
    assert hints_only.distill == Distill(share=0.0, hint_share=0.5)


@given(st.integers(1, 4096), shares, st.sampled_from([1, 4, 8, 16, 32]))
def test_kept_channels_is_a_multiple_or_all_and_never_none(channels: int, share: float, multiple: int) -> None:
    kept = kept_channels(channels, share, multiple)
    assert 1 <= kept <= channels
    while multiple > 1 and channels < 2 * multiple:
        multiple //= 2
    assert kept == channels or kept % multiple == 0


@given(st.integers(1, 4096), shares, shares)
def test_a_greater_share_never_keeps_more(channels: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert kept_channels(channels, high, 8) <= kept_channels(channels, low, 8)


@pytest.mark.parametrize(
    ("channels", "share", "kept"),
    [
        (64, 0.0, 64),
        (64, 0.5, 32),
        (64, 0.999, 8),
        (100, 0.5, 48),
        (100, 0.02, 100),
        (16, 0.75, 8),
        (12, 0.5, 8),
        (12, 0.6, 4),
        (3, 0.9, 1),
    ],
)
def test_kept_channels_by_example(channels: int, share: float, kept: int) -> None:
    assert kept_channels(channels, share, 8) == kept


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: LayerPolicy(weight_bits=1), "greater than or equal to 2"),
        (lambda: LayerPolicy(weight_bits=9), "less than or equal to 8"),
        (lambda: LayerPolicy(weight_bits=4, group_size=0), "greater than or equal to 2"),
        (lambda: LayerPolicy(weight_bits=8, activation_bits=4), "should be 8"),  # type: ignore[arg-type]
        (lambda: LayerPolicy(activation_bits=8), "activation_bits needs weight_bits"),
        (lambda: LayerPolicy(weight_bits=4, activation_range="dynamic"), "activation_range 'dynamic' needs activation_bits"),
        (lambda: LayerPolicy(weight_sparsity=1.0), "less than 1"),
        (lambda: LayerPolicy(weight_sparsity=-0.1), "greater than or equal to 0"),
        (lambda: LayerPolicy(weight_sparsity=float("nan")), "weight_sparsity"),
        (lambda: Policy(channel_sparsity={"conv1": 1.01}), "'conv1' must be in"),
        (lambda: Policy(channel_sparsity={"conv1": float("nan")}), "'conv1' must be in"),
        (lambda: Policy(importance="l3"), "importance"),  # type: ignore[arg-type]
        (lambda: Policy(layer={}), "Extra inputs"),  # type: ignore[call-arg]
        (lambda: Finetune(learning_rate=0), "greater than 0"),
        (lambda: Finetune(learning_rate=float("inf")), "finite"),
        (lambda: Finetune(steps=-1), "greater than or equal to 0"),
        (lambda: Distill(temperature=0), "greater than 0"),
        (lambda: Distill(share=0.8, hint_share=0.3), "at most 1"),
    ],
)
def test_bad_values_are_refused(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is no valid Policy"),
        ('{"version": 2}', "version"),
        ('{"layers": {"conv1": {"weight_bits": 1}}}', r"layers.conv1.weight_bits.*given 1"),
        ('{"layrs": {}}', "layrs"),
    ],
)
def test_bad_json_is_refused_in_one_line_that_names_the_file(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        Policy.from_json(text, source="policy.json")
    assert str(raised.value).startswith("policy.json")
    assert "\n" not in str(raised.value)


def test_an_unknown_name_comes_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no layer 'conf2'; did you mean 'conv2'\?"):
        Policy(layers={"conf2": LayerPolicy(weight_bits=8)}).check(vgg(), MENU)
    with pytest.raises(UnknownNameError, match=r"no channel group 'layer1.0.conv2'; did you mean 'layer"):
        Policy(channel_sparsity={"layer1.0.conv2": 0.5}).check(resnet20(), MENU)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (LayerPolicy(weight_bits=3), r"layer 'conv2': weight_bits 3 is not on the target's menu \(4, 8, float\)"),
        (LayerPolicy(weight_bits=8, activation_bits=8), "activation_bits 8 is not on"),
        (LayerPolicy(weight_bits=8, weight_sparsity=0.5), "weight_sparsity 0.5 saves nothing"),
    ],
)
def test_what_is_off_the_menu_is_refused(layer: LayerPolicy, complaint: str) -> None:
    menu = Menu(weight_bits=(4, 8, None), activation_bits=(None,), weight_sparsity=False, channel_multiple=4)
    with pytest.raises(PolicyError, match=complaint):
        Policy(layers={"conv2": layer}).check(vgg(), menu)


def test_weights_beside_integer_activations_have_the_bits_that_every_cpu_can_multiply() -> None:
    layers = {
        "conv2": LayerPolicy(weight_bits=8, activation_bits=8, weight_sparsity=0.5),
        "conv3": LayerPolicy(weight_bits=8),
        "head": LayerPolicy(weight_bits=4, activation_bits=8),
    }
    found = Policy(layers=layers).canonical(vgg(), MENU)
    assert found.layers == layers | {"conv2": LayerPolicy(weight_bits=7, activation_bits=8, weight_sparsity=0.5)}
    assert found.canonical(vgg(), MENU) == found
    wide = MENU.model_copy(update={"integer_weight_bits": 8})
    assert Policy(layers=layers).canonical(vgg(), wide).layers == layers


GROUPED = LayerPolicy(weight_bits=4, group_size=64)


@pytest.mark.parametrize(
    ("name", "layer", "complaint"),
    [
        ("conv2", GROUPED, "layer 'conv2': group_size 64 is for linear layers, and this is a conv2d; leave it out"),
        ("head", LayerPolicy(weight_bits=4, group_size=48), r"group_size 48 is not on the target's menu \(32, 64, 128\)"),
        ("head", LayerPolicy(weight_bits=4, activation_bits=8, group_size=64), "'head': group_size 64 needs float activations"),
    ],
)
def test_groups_that_no_runtime_has_are_refused(name: str, layer: LayerPolicy, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        Policy(layers={name: layer}).check(vgg(), MENU)


DYNAMIC = LayerPolicy(weight_bits=4, activation_bits=8, activation_range="dynamic")


def test_dynamic_ranges_are_for_linear_layers_where_they_pay() -> None:
    Policy(layers={"head": DYNAMIC}).check(vgg(), MENU)
    with pytest.raises(
        PolicyError, match="layer 'conv2': activation_range 'dynamic' is for linear layers, and this is a conv2d"
    ):
        Policy(layers={"conv2": DYNAMIC}).check(vgg(), MENU)
    for runtime in ("openvino", "torch"):
        with pytest.raises(PolicyError, match="on the target's menu"):
            Policy(layers={"head": DYNAMIC}).check(vgg(), Target(runtime=runtime).menu)


def test_dynamic_ranges_need_not_be_known_for_each_call_of_a_layer() -> None:
    layers = vgg()
    called_twice = layers.model_copy(
        update={"layers": tuple(layer.model_copy(update={"integer": False}) for layer in layers.layers)}
    )
    found = Policy(layers={"head": DYNAMIC}).canonical(called_twice, MENU)
    assert found.layers == {"head": DYNAMIC}
    static = DYNAMIC.model_copy(update={"activation_range": "static"})
    assert Policy(layers={"head": static}).canonical(called_twice, MENU).layers == {"head": LayerPolicy(weight_bits=4)}
    nowhere = MENU.model_copy(update={"integer_kinds": ()})
    assert Policy(layers={"head": DYNAMIC}).canonical(layers, nowhere).layers == {"head": LayerPolicy(weight_bits=4)}
    wide = DYNAMIC.model_copy(update={"weight_bits": 8})
    assert Policy(layers={"head": wide}).canonical(layers, MENU).layers["head"].weight_bits == MENU.integer_weight_bits


def test_a_target_without_groups_says_so() -> None:
    menu = Menu(weight_bits=(4, None), activation_bits=(None,), weight_sparsity=False, channel_multiple=4)
    with pytest.raises(PolicyError, match=r"group_size 64 is not on the target's menu \(there are none\)"):
        Policy(layers={"head": GROUPED}).check(vgg(), menu)


def test_groups_that_amount_to_nothing_are_dropped() -> None:
    def canonical(how: LayerPolicy, **shares: float) -> dict[str, LayerPolicy]:
        policy = Policy(layers={"head": how}, channel_sparsity=shares)
        found = policy.canonical(vgg(), MENU)
        assert found.canonical(vgg(), MENU) == found
        return found.layers

    wide = LayerPolicy(weight_bits=4, group_size=128)
    assert canonical(wide) == {"head": wide}
    # Of 900 inputs 72 are left, of which a group of 128 has all.
    assert canonical(wide, conv3=0.93) == {"head": LayerPolicy(weight_bits=4)}
    assert canonical(LayerPolicy(weight_bits=4, group_size=64), conv3=0.93) == {"head": GROUPED}
    assert canonical(LayerPolicy(group_size=64)) == {}
    assert canonical(LayerPolicy(group_size=64, weight_sparsity=0.5)) == {"head": LayerPolicy(weight_sparsity=0.5)}
    integer = LayerPolicy(weight_bits=4, activation_bits=8)
    assert canonical(integer.model_copy(update={"group_size": 64})) == {"head": integer}


def test_the_empty_policy_fits_everything() -> None:
    for layers in NETS.values():
        Policy().check(layers, MENU)
        assert Policy().canonical(layers, MENU) == Policy()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(), "float, 200 steps"),
        (Policy(finetune=Finetune(steps=0)), "float, no fine-tuning"),
        (Policy(channel_sparsity={"conv1": 0.5, "conv2": 0.5, "conv3": 0.52}), "-51% channels, float, 200 steps"),
        (
            Policy(
                layers={
                    "conv2": LayerPolicy(weight_bits=4, activation_bits=8, weight_sparsity=0.5),
                    "head": LayerPolicy(weight_bits=8),
                },
                distill=Distill(temperature=4),
            ),
            "w4-8 a8 (1 of 4), 2 float, 18% zeros, 200 steps, KD T=4",
        ),
        (Policy(layers={"head": GROUPED}), "w4 g64, 3 float, 200 steps"),
        (Policy(layers={"head": DYNAMIC}), "w4 a8 dynamic (1 of 4), 3 float, 200 steps"),
        (
            Policy(layers={"conv2": LayerPolicy(weight_bits=4, activation_bits=8), "head": DYNAMIC}),
            "w4 a8 (2 of 4, 1 dynamic), 2 float, 200 steps",
        ),
    ],
)
def test_a_policy_in_words(policy: Policy, words: str) -> None:
    assert policy.describe(vgg()) == words


@settings(max_examples=30)
@given(nets.flatmap(lambda net: st.tuples(st.just(net), policies(net))))
def test_every_policy_has_words(drawn: tuple[str, Policy]) -> None:
    net, policy = drawn
    assert "steps" in policy.describe(NETS[net]) or "no fine-tuning" in policy.describe(NETS[net])


def test_a_changed_copy_forgets_what_was_worked_out_for_the_original() -> None:
    layers = vgg()
    first = layers.layers[0]
    assert layers.layer(first.name) == first
    renamed = layers.model_copy(update={"layers": (first.model_copy(update={"name": "other"}),)})
    assert renamed.layer("other").name == "other"
    with pytest.raises(UnknownNameError):
        renamed.layer(first.name)


def test_a_name_that_is_no_line_is_told_in_one() -> None:
    with pytest.raises(InputError, match=r"'\\n\\x1b\[2J': Extra inputs are not permitted"):
        Policy.from_json('{"\\n\\u001b[2J": 1}')
