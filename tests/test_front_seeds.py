"""The front when models were trained further, with one seed or several."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.front import FrontSoFar, ParetoFront
from autocompress.objective import Limit
from autocompress.result import TrialResult
from tests.made import BASELINE, LIMITS, OBJECTIVES, made_result


def refit(number: int, of: int, accuracy: float, size: float = 24_000) -> TrialResult:
    return made_result(number, size, 0.22, accuracy).model_copy(update={"refit_of": of})


def front_with(*results: TrialResult) -> ParetoFront:
    return ParetoFront.of(results, OBJECTIVES, (), BASELINE)


def test_a_refit_takes_the_place_of_its_trial_unless_it_is_worse() -> None:
    trial = made_result(0, 24_000, 0.22, 0.960)
    assert [member.number for member in front_with(trial, refit(1, 0, 0.965, size=24_010)).members] == [1]
    assert [member.number for member in front_with(trial, refit(1, 0, 0.955)).members] == [0]


def test_a_refit_beyond_a_limit_leaves_its_trial_where_it_was() -> None:
    limits = [Limit.parse("latency <= 0.225")]
    trial = made_result(0, 24_000, 0.22, 0.960)
    slow = made_result(1, 24_000, 0.23, 0.965).model_copy(update={"refit_of": 0})
    front = ParetoFront.of([trial, slow], OBJECTIVES, limits, BASELINE)
    assert front.members == (trial,)
    quick = slow.model_copy(update={"number": 2, "metrics": slow.metrics | {"latency_ms": 0.22, "accuracy": 0.963}})
    front = ParetoFront.of([trial, slow, quick], OBJECTIVES, limits, BASELINE)
    assert front.members == (quick,), "of its seeds the one that keeps to the limits stands for all"
    assert front.spread[2].mean == pytest.approx(0.964)


def test_the_seed_nearest_to_the_mean_stands_for_all() -> None:
    seeds = [refit(number, 0, accuracy) for number, accuracy in ((1, 0.960), (2, 0.971), (3, 0.970))]
    front = front_with(made_result(0, 24_000, 0.22, 0.950), *seeds)
    assert [member.number for member in front.members] == [3]
    spread = front.spread[3]
    assert spread.seeds == 3
    assert spread.mean == pytest.approx(0.967)
    assert spread.deviation == pytest.approx(0.0061, abs=1e-4)
    assert ParetoFront.from_json(front.to_json()) == front


def test_a_member_that_only_noise_keeps_on_the_front_is_named() -> None:
    seeds = [refit(number, 0, accuracy) for number, accuracy in ((1, 0.960), (2, 0.964), (3, 0.962))]
    noise_alone, truly_better = made_result(4, 30_000, 0.25, 0.965), made_result(5, 40_000, 0.30, 0.980)
    front = front_with(*seeds, noise_alone, truly_better)
    assert [member.number for member in front.members] == [3, 4, 5]
    assert front.doubtful == {4: 3}
    assert front_with(noise_alone, truly_better).doubtful == {}  # without seeds nobody knows the noise


# Few different values: results that are equal, or equal in one objective, are where rules go wrong.
drawn = st.lists(
    st.tuples(
        st.sampled_from([20_000.0, 24_000.0, 30_000.0]),
        st.sampled_from([0.2, 0.3]),
        st.sampled_from([0.90, 0.95, 0.96, 0.97]),
        st.none() | st.integers(0, 3),
    ),
    max_size=14,
)


@given(drawn, st.sampled_from([(), LIMITS, (Limit.parse("size <= 22 kB"),)]), st.integers(0, 14))
def test_the_front_so_far_is_the_front_of_all(
    rows: list[tuple[float, float, float, int | None]], limits: tuple[Limit, ...], known: int
) -> None:
    """Refits of up to four trials among others; some results are known from the beginning."""
    results = []
    for number, (size, latency, accuracy, refit_of) in enumerate(rows, 4):
        results.append(made_result(number, size, latency, accuracy).model_copy(update={"refit_of": refit_of}))
    results[:0] = [made_result(number, 26_000, 0.25, 0.94) for number in range(4)]
    so_far = FrontSoFar(OBJECTIVES, limits, BASELINE, results[:known])
    assert so_far.front == ParetoFront.of(results[:known], OBJECTIVES, limits, BASELINE)
    for count, result in enumerate(results[known:], known + 1):
        assert so_far.add(result) == so_far.front == ParetoFront.of(results[:count], OBJECTIVES, limits, BASELINE)


def test_what_a_lucky_seed_had_driven_out_comes_back_when_another_has_less_luck() -> None:
    so_far = FrontSoFar(OBJECTIVES, (), BASELINE)
    for result in (made_result(0, 24_000, 0.22, 0.95), made_result(1, 24_500, 0.23, 0.96), refit(2, 0, 0.97)):
        front = so_far.add(result)
    assert [member.number for member in front.members] == [2]
    assert [member.number for member in so_far.add(refit(3, 0, 0.91)).members] == [0, 1]
