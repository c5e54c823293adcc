"""Laws of the rule by which trials are stopped early, and what a ladder makes of rungs."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autocompress.errors import ExperimentError
from autocompress.halving import Halving, Ladder, Losses, goes_on
from autocompress.objective import Limit, Objective
from autocompress.result import Rung

etas = st.sampled_from([1.5, 2.0, 3.0, 4.0])
# Few different values: points that are equal, or equal in one objective, are where rules go wrong.
coarse = st.integers(0, 5).map(float)
fine = st.floats(0.0, 1.0, allow_subnormal=False).map(lambda value: round(value, 4))


def points(values: st.SearchStrategy[float], *, most: int = 20) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[values] * width), min_size=1, max_size=most))


def survivors(losses: Sequence[Losses], eta: float) -> list[int]:
    """The places of those that go on, when each is the last to arrive."""
    return [place for place in range(len(losses)) if goes_on(losses[place], without(losses, place), eta)]


def without(losses: Sequence[Losses], place: int) -> list[Losses]:
    return [*losses[:place], *losses[place + 1 :]]


def dominates(one: Losses, other: Losses) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


@given(points(coarse | fine), etas)
def test_no_more_than_their_share_go_on(losses: list[tuple[float, ...]], eta: float) -> None:
    assume(len(losses) >= eta)
    assert len(survivors(losses, eta)) <= math.ceil(len(losses) / eta)


@given(st.lists(st.lists(fine, min_size=10, max_size=10, unique=True), min_size=3, max_size=3), etas)
def test_just_their_share_go_on_where_none_are_equal(columns: list[list[float]], eta: float) -> None:
    losses = list(zip(*columns, strict=True))
    assert len(survivors(losses, eta)) == math.ceil(len(losses) / eta)


@given(points(coarse), etas)
def test_what_dominates_one_that_goes_on_goes_on(losses: list[tuple[float, ...]], eta: float) -> None:
    going = survivors(losses, eta)
    for place in going:
        for other, point in enumerate(losses):
            if dominates(point, losses[place]):
                # Several of the same stand in each other's way, not in that of what they dominate.
                assert other in going or losses.count(point) > 1


@given(points(coarse), etas, st.data())
def test_a_better_trial_has_no_worse_chances(losses: list[tuple[float, ...]], eta: float, data: st.DataObject) -> None:
    """One that dominates all others goes on; one that all others dominate does not, unless there is room for all."""
    assume(len(losses) >= eta)
    best = tuple(min(column) - 1 for column in zip(*losses, strict=True))
    worst = tuple(max(column) + 1 for column in zip(*losses, strict=True))
    assert goes_on(best, losses, eta)
    assert not goes_on(worst, losses, eta)


@given(points(coarse, most=10), st.floats(11.0, 100.0))
def test_all_go_on_while_there_are_fewer_than_eta(losses: list[tuple[float, ...]], eta: float) -> None:
    assert survivors(losses, eta) == list(range(len(losses)))


@given(points(coarse), etas, st.lists(st.tuples(st.integers(-4, 4), st.integers(-8, 8)), min_size=4, max_size=4))
def test_neither_the_unit_nor_the_zero_of_an_objective_matters(
    losses: list[tuple[float, ...]], eta: float, units: list[tuple[int, int]]
) -> None:
    """Powers of two and whole numbers: nothing is rounded."""
    others = [
        tuple(value * 2.0**power + shift for value, (power, shift) in zip(point, units, strict=False)) for point in losses
    ]
    assert survivors(others, eta) == survivors(losses, eta)


@given(points(coarse), etas, st.randoms(use_true_random=False))
def test_the_order_in_which_others_came_does_not_matter(losses: list[tuple[float, ...]], eta: float, random: object) -> None:
    candidate, *others = losses
    assert goes_on(candidate, others, eta) == goes_on(candidate, sorted(others), eta) == goes_on(candidate, others[::-1], eta)


def test_of_two_that_are_the_same_the_first_to_come_goes_on() -> None:
    good, extremes, others = (0.1, 0.1), [(0.0, 1.0), (1.0, 0.0)], [(0.9, 0.9), (0.95, 0.95), (1.0, 1.0)]
    assert goes_on(good, [*extremes, *others], 3)
    assert not goes_on(good, [good, *extremes, *others], 3)
    # One of the two is as good as gone: strangers that add something do not have to make room for it.
    assert goes_on(extremes[0], [good, good, extremes[1], *others], 3)


def test_of_two_that_are_nearly_the_same_one_goes_on() -> None:
    """Neither contributes much while the other is there; together they are most of what there is."""
    twins = [(0.1, 0.1), (0.1001, 0.0999)]
    others = [(0.0, 1.0), (1.0, 0.0), (0.02, 0.6), (0.6, 0.02), (0.97, 0.97), (0.99, 0.99), (1.0, 1.0)]
    assert sum(goes_on(twin, [*without(twins, place), *others], 3) for place, twin in enumerate(twins)) == 1


def test_a_single_objective_is_a_contest_for_the_least() -> None:
    losses = [(float(value),) for value in (3, 1, 4, 1, 5, 9, 2, 6)]
    assert survivors(losses, 2) == [0, 1, 3, 6]
    assert survivors(losses, 4) == [1, 3]
    assert survivors(losses, 8) == []  # two are the least, and there is room for one: nobody knows who came first


@pytest.mark.parametrize(("eta", "rungs"), [(1.0, (0.0,)), (3.0, ()), (3.0, (1.0,)), (3.0, (-0.1,))])
def test_a_halving_that_makes_no_sense_is_an_error(eta: float, rungs: tuple[float, ...]) -> None:
    with pytest.raises(ExperimentError):
        Halving(eta=eta, rungs=rungs)


# --- the ladder

OBJECTIVES = [Objective.of(name) for name in ("size_bytes", "latency_ms", "accuracy")]
BASELINE = {"size_bytes": 1000.0, "latency_ms": 1.0, "accuracy": 0.9}


def ladder(*limits: str, rungs: tuple[float, ...] = (0.0, 0.5)) -> Ladder:
    return Ladder(Halving(eta=3, rungs=rungs), OBJECTIVES, [Limit.parse(limit) for limit in limits], BASELINE)


def rung(step: int, accuracy: float, size: float = 100.0, ms: float = 0.5) -> Rung:
    return Rung(step=step, accuracy=accuracy, metrics={"size_bytes": size, "latency_ms": ms})


def test_a_trial_is_judged_by_those_that_reached_its_rung() -> None:
    found = ladder()
    for number in range(5):
        found.reached(number, [rung(0, 0.5 + number / 100)], 100)
    found.reached(5, [rung(0, 0.4)], 100)
    assert not found.goes_on(5, steps=100)
    found.reached(5, [rung(0, 0.4), rung(50, 0.7)], 100)
    assert found.goes_on(5, steps=100)  # nobody else has trained so far


def test_between_its_rungs_and_at_the_end_a_trial_is_not_stopped() -> None:
    found = ladder()
    for number in range(5):
        found.reached(number, [rung(0, 0.9), rung(50, 0.9), rung(70, 0.9), rung(100, 0.9)], 100)
    for step in (30, 70, 100):
        found.reached(9, [rung(0, 0.1), rung(step, 0.1)], 100)
        assert found.goes_on(9, steps=100)
    found.reached(9, [rung(0, 0.1), rung(50, 0.1)], 100)
    assert not found.goes_on(9, steps=100)


def test_trials_of_other_lengths_are_compared_at_the_same_step() -> None:
    found = ladder()
    for number in range(5):
        found.reached(number, [rung(0, 0.2), rung(25, 0.8), rung(50, 0.9)], 100)  # 50 steps in all
    found.reached(9, [rung(0, 0.2), rung(30, 0.85)], 100)
    assert found.goes_on(9, steps=60)  # 0.85 after 30 steps; the others had 0.8 after 25
    found.reached(9, [rung(0, 0.2), rung(30, 0.75)], 100)
    assert not found.goes_on(9, steps=60)


def test_the_smallest_goes_on_however_little_it_scores() -> None:
    found = ladder()
    for number in range(8):
        found.reached(number, [rung(0, 0.8, size=100 + number)], 100)
    found.reached(9, [rung(0, 0.3, size=40)], 100)
    assert found.goes_on(9, steps=100)


def test_a_trial_beyond_a_known_limit_is_behind_all_that_keep_to_it() -> None:
    found = ladder("size <= 200 B", "accuracy >= baseline - 0.01")
    found.reached(0, [rung(0, 0.1, size=150)], 100)
    found.reached(1, [rung(0, 0.89, size=300)], 100)
    assert not found.goes_on(1, steps=100)
    # What it scores before training is no limit missed.
    assert found.goes_on(0, steps=100)


def test_beyond_the_limit_the_best_go_on_while_nobody_keeps_to_it() -> None:
    found = ladder("size <= 20 B")
    for number in range(6):
        found.reached(number, [rung(0, 0.5, size=100 + 10 * number)], 100)
    found.reached(6, [rung(0, 0.5, size=90)], 100)
    found.reached(7, [rung(0, 0.5, size=500)], 100)
    assert found.goes_on(6, steps=100)
    assert not found.goes_on(7, steps=100)


def test_what_a_rung_does_not_know_does_not_count() -> None:
    found = ladder()
    for number in range(5):
        found.reached(number, [Rung(step=0, accuracy=0.5 + number / 100)], 100)
    found.reached(8, [Rung(step=0, accuracy=0.9)], 100)
    found.reached(9, [Rung(step=0, accuracy=0.4)], 100)
    assert found.goes_on(8, steps=100)
    assert not found.goes_on(9, steps=100)


def test_what_a_trial_knows_is_not_compared_with_what_others_do_not_know() -> None:
    """A search that began without halving has measured no file at the first rung."""
    found = ladder()
    for number in range(5):
        found.reached(number, [Rung(step=0, accuracy=0.9)], 100)
    found.reached(8, [rung(0, 0.4)], 100)
    assert found.goes_on(8, steps=100)  # nobody has measured its size so far
    for number in range(10, 15):
        found.reached(number, [rung(0, 0.5 + number / 100)], 100)
    found.reached(9, [rung(0, 0.4)], 100)
    assert not found.goes_on(9, steps=100)


def test_a_small_one_that_training_would_not_help_is_behind_those_that_it_would() -> None:
    found = ladder()
    for number, accuracy in enumerate((0.80, 0.82, 0.84)):
        # Trained to their ends; the best of them has won back a fifth of what it had lost.
        found.reached(number, [rung(0, accuracy), rung(50, accuracy + 0.01), rung(100, accuracy + 0.012)], 100)
    for number in range(3, 9):
        found.reached(number, [rung(0, 0.3, size=50 + number)], 100)
    found.reached(9, [rung(0, 0.85, size=150)], 100)
    assert found.goes_on(9, steps=100), "larger than all the others, and worth something"
    found.reached(10, [rung(0, 0.3, size=20)], 100)
    assert not found.goes_on(10, steps=100), "smaller than all the others, and of 0.3 nothing will come"


def test_where_training_wins_back_nearly_all_a_small_one_goes_on() -> None:
    found = ladder()
    for number in range(3):
        found.reached(number, [rung(0, 0.2, size=400), rung(50, 0.8, size=400), rung(100, 0.89, size=400)], 100)
    for number in range(3, 9):
        found.reached(number, [rung(0, 0.8, size=100 + number)], 100)
    found.reached(10, [rung(0, 0.3, size=20)], 100)
    assert found.goes_on(10, steps=100)
