"""Which trial is trained further."""

import pytest

from autocompress.errors import ExperimentError
from autocompress.refitting import Refit, next_to_refit
from autocompress.result import TrialResult
from tests.made import BASELINE, LIMITS, OBJECTIVES, made_failure, made_result, made_stop


def chosen(results: list[TrialResult], *taken: int) -> int | None:
    result = next_to_refit(results, OBJECTIVES, LIMITS, BASELINE, taken=taken)
    return None if result is None else result.number


def test_the_one_that_could_gain_most_is_first() -> None:
    # Both as small and fast as can be; the second has lost more, so half of it is more.
    results = [made_result(0, 9_000, 0.15, 0.975), made_result(1, 9_000, 0.15, 0.950)]
    assert chosen([results[0]]) == 0
    assert chosen([*results, made_result(2, 300_000, 0.7, 0.95)]) in (0, 1)
    assert chosen([made_result(0, 9_000, 0.15, 0.955), made_result(1, 300_000, 0.7, 0.955)]) == 0


def test_nothing_is_gained_where_nothing_was_lost() -> None:
    assert chosen([made_result(0, 9_000, 0.15, BASELINE["accuracy"] + 0.001)]) is None
    assert chosen([]) is None
    assert chosen([made_failure(0, "it burst"), made_stop(1)]) is None


def test_one_that_is_taken_or_a_refit_is_not_chosen_again_and_spoils_its_neighbours() -> None:
    twins = [made_result(0, 9_000, 0.15, 0.960), made_result(1, 9_100, 0.151, 0.960), made_result(2, 5_000, 0.3, 0.955)]
    first = chosen(twins)
    assert first == 0
    assert chosen(twins, 0) == 2  # not its twin, which would add nothing beside it
    refit = made_result(3, 9_000, 0.15, 0.961).model_copy(update={"refit_of": 0})
    assert chosen([twins[0], refit], 0) is None


def test_one_beyond_a_limit_that_training_may_bring_within_is_a_candidate() -> None:
    bound = BASELINE["accuracy"] - 0.05
    assert chosen([made_result(0, 9_000, 0.15, bound - 0.02)]) == 0
    assert chosen([made_result(0, 9_000, 0.15, bound - 0.2)]) is None


def test_a_member_of_the_front_is_a_candidate_however_old() -> None:
    best = made_result(0, 9_000, 0.15, 0.960)
    later = [made_result(number, 300_000 + number, 0.7, 0.950) for number in range(1, 260)]
    assert chosen([best, *later]) == 0


@pytest.mark.parametrize("settings", [{"models": 0}, {"seeds": 0}, {"steps": 0}, {"share": 0.0}, {"share": 1.0}])
def test_a_refit_that_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ExperimentError, match="refit"):
        Refit(**settings)  # type: ignore[arg-type]
