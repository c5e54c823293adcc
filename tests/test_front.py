import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.front import ParetoFront, TestScore, dominates, hypervolume, loss_of, missed, relative_excess, unusable
from autocompress.objective import Limit, Objective, Scoring
from autocompress.policy import Policy
from autocompress.result import Status, TrialResult

BASELINE = {"size_bytes": 1000.0, "latency_ms": 10.0, "accuracy": 0.9}
SIZE, LATENCY, ACCURACY = (Objective.of(name) for name in ("size", "latency", "accuracy"))
ALL = (SIZE, LATENCY, ACCURACY)
LIMITS = (Limit.parse("accuracy >= baseline - 0.1"), Limit.parse("size <= 0.8 * baseline"))


def result(number: int, size: float, latency: float, accuracy: float, status: Status = Status.COMPLETE) -> TrialResult:
    metrics = {"size_bytes": size, "latency_ms": latency, "accuracy": accuracy}
    return TrialResult(number=number, policy=Policy(), status=status, metrics=metrics, seed=0, started=0.0)


# Coarse values, so that ties are common.
points = st.tuples(
    st.sampled_from([100.0, 400.0, 800.0, 900.0]),
    st.sampled_from([1.0, 5.0, 11.0]),
    st.sampled_from([0.0, 0.8, 0.85, 0.9, 0.95]),
)
results = st.lists(points, max_size=12).map(lambda drawn: [result(number, *point) for number, point in enumerate(drawn)])
objectives = st.sampled_from([ALL, (SIZE, ACCURACY), (ACCURACY,), (LATENCY,)])
limits = st.sampled_from([(), LIMITS[:1], LIMITS])


def front_of(known: list[TrialResult], objectives: tuple[Objective, ...] = ALL, limits: tuple[Limit, ...] = ()) -> ParetoFront:
    return ParetoFront.of(known, objectives, limits, BASELINE)


def values(member: TrialResult, objectives: tuple[Objective, ...]) -> tuple[float, ...]:
    return tuple(member.metrics[objective.metric] for objective in objectives)


@given(results, objectives, limits)
def test_nothing_on_the_front_is_dominated_and_nothing_else_is_left(
    known: list[TrialResult], objectives: tuple[Objective, ...], limits: tuple[Limit, ...]
) -> None:
    front = front_of(known, objectives, limits)
    feasible = [trial for trial in known if not missed(trial.metrics, limits, BASELINE)]
    for member in front.members:
        assert member in feasible
        assert not any(dominates(other.metrics, member.metrics, objectives) for other in feasible)
    taken = {values(member, objectives) for member in front.members}
    assert len(taken) == len(front.members), "of equals, one is enough"
    for other in feasible:
        if values(other, objectives) not in taken:
            assert any(dominates(member.metrics, other.metrics, objectives) for member in front.members)


@given(results, objectives, limits)
def test_a_front_made_one_by_one_is_the_front_of_all(
    known: list[TrialResult], objectives: tuple[Objective, ...], limits: tuple[Limit, ...]
) -> None:
    front = front_of([], objectives, limits)
    for trial in known:
        front = front_of([*front.members, *front.nearest, trial], objectives, limits)
    whole = front_of(known, objectives, limits)
    assert front.members == whole.members
    assert [relative_excess(trial.metrics, limits, BASELINE) for trial in front.nearest] == [
        relative_excess(trial.metrics, limits, BASELINE) for trial in whole.nearest
    ]


@given(results, objectives, limits)
def test_hypervolume_never_falls_and_is_a_share(
    known: list[TrialResult], objectives: tuple[Objective, ...], limits: tuple[Limit, ...]
) -> None:
    volumes = [front_of(known[:count], objectives, limits).hypervolume() for count in range(len(known) + 1)]
    assert volumes[0] == 0
    assert all(after >= before - 1e-12 for before, after in pairwise(volumes))
    assert all(0 <= volume <= 1 + 1e-12 for volume in volumes)


@given(points, points, objectives)
def test_dominance_is_strict(
    left: tuple[float, float, float], right: tuple[float, float, float], objectives: tuple[Objective, ...]
) -> None:
    one, other = result(0, *left).metrics, result(1, *right).metrics
    assert not dominates(one, one, objectives)
    assert not (dominates(one, other, objectives) and dominates(other, one, objectives))


@pytest.mark.parametrize(
    ("known", "objectives", "volume"),
    [
        ([result(0, 250, 5, 0.9)], (SIZE, LATENCY), 0.75 * 0.5),
        ([result(0, 250, 5, 0.9), result(1, 500, 2, 0.9)], (SIZE, LATENCY), 0.75 * 0.5 + 0.5 * 0.3),
        ([result(0, 250, 5, 0.855)], ALL, 0.75 * 0.5 * 0.5),
        ([result(0, 250, 5, 0.99)], ALL, 0.75 * 0.5),
        ([result(0, 250, 5, 0.81)], ALL, 0.0),
        ([result(0, 1000, 5, 0.9)], ALL, 0.0),
        ([result(0, 2000, 5, 0.9), result(1, 250, 5, 0.9)], ALL, 0.75 * 0.5),
    ],
)
def test_hypervolume_by_hand(known: list[TrialResult], objectives: tuple[Objective, ...], volume: float) -> None:
    assert hypervolume([trial.metrics for trial in known], objectives, BASELINE) == pytest.approx(volume)


def test_a_loss_is_0_at_the_ideal_and_1_at_the_reference() -> None:
    assert loss_of(BASELINE, SIZE, BASELINE) == 1
    assert loss_of(BASELINE, ACCURACY, BASELINE) == 0
    assert loss_of({"accuracy": 0.81}, ACCURACY, BASELINE) == pytest.approx(1)


@pytest.mark.parametrize("status", [Status.STOPPED, Status.FAILED])
def test_only_complete_trials_count(status: Status) -> None:
    front = front_of([result(0, 1, 1, 1, status)], ALL, LIMITS)
    assert front.members == front.nearest == ()


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({"size_bytes": 1.0, "accuracy": 0.9}, "the trial measured no latency_ms"),
        ({"size_bytes": 1.0, "latency_ms": math.nan, "accuracy": 0.9}, "latency_ms is nan"),
        ({"size_bytes": math.inf, "latency_ms": 1.0, "accuracy": 0.9}, "size_bytes is inf"),
        ({"size_bytes": 1.0, "latency_ms": 1.0, "accuracy": 0.9}, None),
    ],
)
def test_what_cannot_be_compared_is_left_out(metrics: dict[str, float], problem: str | None) -> None:
    assert unusable(metrics, ALL, ()) == problem
    trial = result(1, 1, 1, 1).model_copy(update={"metrics": metrics})
    front = front_of([result(0, 500, 5, 0.9), trial], ALL, LIMITS)
    assert (trial in front.members) == (problem is None)
    assert len(front.members) == 1


def test_a_limit_on_what_is_no_objective_needs_its_metric_too() -> None:
    assert unusable({"size_bytes": 1.0}, (SIZE,), LIMITS) == "the trial measured no accuracy"


def test_members_come_best_first_objective_first() -> None:
    known = [result(0, 500, 2, 0.9), result(1, 100, 5, 0.8), result(2, 300, 3, 0.85)]
    assert [member.number for member in front_of(known).members] == [1, 2, 0]
    assert [member.number for member in front_of(known, (ACCURACY, SIZE)).members] == [0, 2, 1]


def test_limits_keep_out_what_misses_them() -> None:
    known = [result(0, 100, 1, 0.5), result(1, 900, 1, 0.95), result(2, 700, 9, 0.8)]
    front = front_of(known, ALL, LIMITS)
    assert [member.number for member in front.members] == [2]
    assert front.nearest == ()
    assert [limit.text for limit in missed(known[0].metrics, LIMITS, BASELINE)] == ["accuracy >= baseline - 0.1"]
    assert [limit.text for limit in missed(known[1].metrics, LIMITS, BASELINE)] == ["size <= 0.8 * baseline"]


def test_a_limit_met_exactly_is_met() -> None:
    assert not missed({"size_bytes": 1.0, "accuracy": 0.9 - 0.1}, LIMITS, BASELINE)


def test_when_nothing_meets_the_limits_the_three_nearest_are_named() -> None:
    known = [result(0, 880, 1, 0.9), result(1, 900, 1, 0.6), result(2, 800, 1, 0.78), result(3, 850, 1, 0.9)]
    front = front_of(known, ALL, LIMITS)
    assert front.members == ()
    assert [trial.number for trial in front.nearest] == [2, 3, 0]
    assert front.pick("knee") is None
    assert front.recommended() is None
    assert front.hypervolume() == 0


MANY = [
    result(0, 900, 9, 0.95),
    result(1, 500, 6, 0.92),
    result(2, 120, 2, 0.895),
    result(3, 90, 4, 0.87),
    result(4, 80, 1, 0.80),
]


@pytest.mark.parametrize(
    ("how", "max_drop", "number"),
    [
        ("smallest", None, 2),
        ("smallest", math.inf, 4),
        ("fastest", None, 2),
        ("fastest", math.inf, 4),
        ("best", None, 0),
        ("knee", None, 2),
        ("smallest", 0.01, 2),
        ("smallest", 0.03, 3),
        ("fastest", 0.03, 2),
        ("best", 0.0, 0),
        ("smallest", 0.0, 1),
    ],
)
def test_picks(how: str, max_drop: float | None, number: int) -> None:
    picked = front_of(MANY).pick(how, max_drop=max_drop)  # type: ignore[arg-type]
    assert picked is not None
    assert picked.number == number


def test_nothing_is_picked_when_all_lose_too_much() -> None:
    assert front_of(MANY[3:]).pick("best", max_drop=0.01) is None


def test_the_recommended_loses_at_most_a_point_if_any_does() -> None:
    recommended = front_of(MANY).recommended()
    assert recommended is not None
    assert recommended.number == 2
    lossy = front_of(MANY[3:]).recommended()
    assert lossy is not None
    assert lossy in MANY[3:]


def test_the_recommended_has_learnt_something_where_none_is_within_a_point() -> None:
    lossy = [result(0, 400, 4, 0.885), result(1, 300, 3, 0.88), result(2, 250, 2.5, 0.86), result(3, 20, 0.2, 0.10)]
    front = front_of(lossy)
    assert front.usual_drop() == pytest.approx(0.025)
    for how in ("knee", "smallest", "fastest"):
        picked = front.pick(how)
        assert picked is not None
        assert picked.number == 1, how
    assert front.recommended() == front.pick("knee")


def test_where_a_limit_bounds_the_score_the_ends_are_those_of_the_whole_front() -> None:
    front = front_of(MANY, limits=(Limit.parse("accuracy >= baseline - 0.1"),))
    picked = {how: front.pick(how) for how in ("knee", "smallest", "fastest")}
    assert {how: found and found.number for how, found in picked.items()} == {"knee": 2, "smallest": 4, "fastest": 4}


def test_a_score_that_is_no_share_is_judged_by_per_cents() -> None:
    """Errors of some thousandths: none of them may be three times as large and count as being within a point."""
    errors = [result(0, 900, 9, 0.0041), result(1, 120, 2, 0.0046), result(2, 80, 1, 0.0135)]
    scoring = Scoring(name="MSE", goal="min", share=False)
    objectives = (SIZE, LATENCY, Objective.of("accuracy", scoring))
    front = ParetoFront.of(errors, objectives, (), BASELINE | {"accuracy": 0.004}, scoring)
    assert front.usual_drop() == pytest.approx(0.00014)
    assert front.recommended() == errors[0]


def test_the_fastest_may_be_that_at_another_target() -> None:
    there = "latency_ms/openvino-cpu"
    models = [result(0, 900, 9, 0.9), result(1, 120, 2, 0.9)]
    models = [one.model_copy(update={"metrics": one.metrics | {there: 1.0 + one.number}}) for one in models]
    both = ParetoFront.of(models, (*ALL, Objective(metric=there, goal="min")), (), BASELINE | {there: 3.0})
    assert both.pick("fastest") == models[1]
    assert both.pick("fastest", latency=there) == models[0]


def test_the_knee_of_equals_is_one_of_them() -> None:
    assert front_of([result(0, 100, 1, 0.9)]).pick("knee") == result(0, 100, 1, 0.9)


@given(results, limits)
def test_a_front_survives_json(known: list[TrialResult], limits: tuple[Limit, ...]) -> None:
    front = front_of(known, ALL, limits)
    score = TestScore(accuracy=0.9, low=0.88, high=0.92, examples=1000)
    front = front.model_copy(update={"test": {member.number: score for member in front.members}, "baseline_test": score})
    assert ParetoFront.from_json(front.to_json()) == front


def test_more_of_the_same_adds_nothing() -> None:
    again = [result(number, 120, 2, 0.895) for number in range(3)]
    assert [member.number for member in front_of(again).members] == [0]
    assert front_of(again).hypervolume() == front_of(again[:1]).hypervolume()


def test_a_stored_front_whose_models_lack_what_counts_is_refused() -> None:
    front = front_of([result(0, 100, 1.0, 0.9)])
    with pytest.raises(InputError, match="trial 0: the trial measured no size_bytes"):
        ParetoFront.from_json(front.to_json().replace('"size_bytes":100.0', '"loudness":100.0'))
    with pytest.raises(InputError, match="the uncompressed model has no loudness"):
        ParetoFront.from_json(front.to_json().replace('"metric":"size_bytes"', '"metric":"loudness"'))
