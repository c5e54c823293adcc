"""The front when models were trained further, with one seed or several."""

import pytest

from autocompress.front import ParetoFront
from autocompress.result import TrialResult
from tests.made import BASELINE, OBJECTIVES, made_result


def refit(number: int, of: int, accuracy: float, size: float = 24_000) -> TrialResult:
    return made_result(number, size, 0.22, accuracy).model_copy(update={"refit_of": of})


def front_with(*results: TrialResult) -> ParetoFront:
    return ParetoFront.of(results, OBJECTIVES, (), BASELINE)


def test_a_refit_takes_the_place_of_its_trial_unless_it_is_worse() -> None:
    trial = made_result(0, 24_000, 0.22, 0.960)
    assert [member.number for member in front_with(trial, refit(1, 0, 0.965, size=24_010)).members] == [1]
    assert [member.number for member in front_with(trial, refit(1, 0, 0.955)).members] == [0]


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
