from collections.abc import Sequence

from autocompress.front import ParetoFront
from autocompress.layer import Group, Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.report.agreement import Agreement, agreement_of
from autocompress.result import TrialResult
from tests.made import BASELINE, LAYERS, OBJECTIVES, made_result


def front_of(policies: Sequence[Policy]) -> ParetoFront:
    """Smaller and worse with every policy: all are on the front."""
    results = [
        made_result(number, 90_000 - 5000 * number, 0.3, 0.98 - 0.001 * number).model_copy(update={"policy": policy})
        for number, policy in enumerate(policies)
    ]
    front = ParetoFront.of(results, OBJECTIVES, (), BASELINE)
    assert len(front.members) == len(policies)
    return front


def agreed(policies: Sequence[Policy], layers: Layers = LAYERS) -> Agreement:
    found = agreement_of(front_of(policies), layers)
    assert found is not None
    return found


def stored(bits: int, **others: int) -> dict[str, LayerPolicy]:
    return {layer.name: LayerPolicy(weight_bits=others.get(layer.name.replace(".", "_"), bits)) for layer in LAYERS}


def test_what_all_do_is_told_of_all_and_what_nearly_all_do_of_so_many() -> None:
    policies = [Policy(layers=stored(4, features_0=8, classifier=3 if number else 2)) for number in range(5)]
    assert agreed(policies).sentences == (
        "All 5 keep features.0 in 8 bits.",
        "All 5 keep features.3 in 4 bits.",
        "4 of 5 keep classifier in 3 bits.",
        "All 5 compute features.0, features.3 and classifier in floats.",
        "All 5 keep every channel of features.0 and features.3.",
        "All 5 leave single weights as they are: none is set to zero.",
    )


def test_what_too_few_do_is_not_told() -> None:
    policies = [
        Policy(
            channel_sparsity={"features.0": share}, layers={"features.3": LayerPolicy(weight_bits=bits, weight_sparsity=0.5)}
        )
        for bits, share in ((2, 0.0), (3, 0.2), (4, 0.5), (5, 0.7))
    ]
    sentences = agreed(policies).sentences
    assert not any("bits" in sentence for sentence in sentences if "features.3" in sentence)
    assert not any("channel" in sentence for sentence in sentences if "features.0" in sentence)
    assert not any("single weights" in sentence for sentence in sentences)


def test_the_strongest_cut_that_holds_is_told_once() -> None:
    policies = [Policy(channel_sparsity={"features.0": share, "features.3": 0.3}) for share in (0.75, 0.8)]
    cuts = [sentence for sentence in agreed(policies).sentences if "remove" in sentence]
    assert cuts == [
        "Both remove at least 75% of the channels of features.0.",
        "Both remove at least 25% of the channels of features.3.",
    ]


def test_branches_that_all_leave_out_are_named() -> None:
    group = Group(name="features.3", channels=64, writers=("features.3",), readers={"classifier": 9}, branch=("features.3",))
    layers = Layers(layers=LAYERS.layers, groups=(group,))
    found = agreed([Policy(channel_sparsity={"features.3": 1.0}, layers=stored(bits)) for bits in (3, 4)], layers)
    assert found.sentences[0] == "Both leave out features.3."
    assert found.spans[1].bits == "left out"


def test_of_a_layer_that_most_leave_out_nothing_else_is_told() -> None:
    group = Group(name="features.3", channels=64, writers=("features.3",), readers={"classifier": 9}, branch=("features.3",))
    layers = Layers(layers=LAYERS.layers, groups=(group,))
    gone = [
        Policy(channel_sparsity={"features.3": 1.0}, layers={"classifier": LayerPolicy(weight_bits=b)}) for b in (2, 3, 4, 5)
    ]
    sentences = agreed([*gone, Policy(layers=stored(6))], layers).sentences
    assert sentences[0] == "4 of 5 leave out features.3."
    assert not any("features.3" in sentence for sentence in sentences[1:]), sentences


def test_spans_tell_what_is_done_to_each_layer() -> None:
    policies = [
        Policy(channel_sparsity={"features.0": 0.5}, layers={"features.0": LayerPolicy(weight_bits=2, weight_sparsity=0.25)}),
        Policy(layers={"features.0": LayerPolicy(weight_bits=4), "classifier": LayerPolicy(weight_bits=8)}),
    ]
    first, second, last = agreed(policies).spans
    assert (first.channels, first.bits, first.zeros) == ("32 to 64 of 64", "2 to 4", "0 to 25%")
    assert (second.bits, second.zeros) == ("float", "0%")
    assert (last.channels, last.bits) == ("-", "8, float in 1 of 2")


def test_one_member_agrees_with_nobody() -> None:
    assert agreement_of(front_of([Policy()]), LAYERS) is None
    results: list[TrialResult] = []
    assert agreement_of(ParetoFront.of(results, OBJECTIVES, (), BASELINE), LAYERS) is None
