"""Which trial is trained further."""

import pytest

from autocompress.errors import ExperimentError
from autocompress.policy import Finetune, Policy
from autocompress.refitting import Refit, next_to_refit, seconds_a_step, trained_steps, wanted_steps
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


def test_where_none_is_quicker_than_the_uncompressed_model_the_others_are_trained_all_the_same() -> None:
    slow = 1.6 * BASELINE["latency_ms"]
    results = [
        made_result(0, 9_000, slow, 0.975),
        made_result(1, 9_000, slow, 0.950),
        made_result(2, 5_000, 1.1 * slow, 0.95),
    ]
    assert chosen([results[0]]) == 0
    assert chosen(results) in (0, 1)
    assert chosen(results, 0, 1) == 2
    assert chosen([made_result(0, 9_000, slow, BASELINE["accuracy"] + 0.001)]) is None, "nothing was lost"


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


def taken(number: int, steps: int, seconds: float) -> TrialResult:
    """A trial of `steps`, which took so many seconds of training and two besides."""
    result = made_result(number, 9_000, 0.15, 0.960)
    policy = result.policy.model_copy(update={"finetune": Finetune(steps=steps)})
    return result.model_copy(update={"policy": policy, "seconds": {"finetune": seconds, "compress": 2.0}})


def test_what_a_step_takes_is_learnt_from_refits_too() -> None:
    untrained = taken(0, 0, 0.0)
    assert seconds_a_step(untrained, [untrained]) == 0.0
    refit = taken(1, 50, 100.0).model_copy(update={"refit_of": 0})
    assert seconds_a_step(untrained, [untrained, refit]) == 2.0


def test_a_refit_is_four_times_as_long_as_its_trial_or_takes_one_models_part_of_the_time() -> None:
    trial, refit = taken(0, 100, 10.0), Refit(models=4, share=0.5)
    assert wanted_steps(refit, trial, 100, [trial], None) == 400
    assert wanted_steps(refit, trial, 100, [trial], 10_000.0) == 400
    assert wanted_steps(refit, trial, 100, [trial], 256.0) == 300  # 32 seconds for each of four, of which two are not training
    assert wanted_steps(Refit(models=2, seeds=2, share=0.5), trial, 100, [trial], 256.0) == 300
    assert wanted_steps(refit, trial, 100, [trial], 10.0) == 100
    assert wanted_steps(Refit(steps=7), trial, 100, [trial], 10.0) == 7


def test_before_anything_was_trained_a_refit_is_no_longer_than_a_trial() -> None:
    untrained = taken(0, 0, 0.0)
    assert wanted_steps(Refit(), untrained, 150, [untrained], 800.0) == 150
    assert wanted_steps(Refit(), untrained, 150, [untrained], None) == 600


def test_one_without_training_is_trained_as_it_was_asked_for_or_as_long_as_others() -> None:
    untrained, trial = taken(0, 0, 0.0), taken(1, 90, 5.0)
    refit = taken(2, 400, 5.0).model_copy(update={"refit_of": 1})
    assert trained_steps(Policy(finetune=Finetune(steps=60)), [untrained, trial], usual=70) == 60
    assert trained_steps(untrained.policy, [untrained, trial, refit], usual=70) == 90
    assert trained_steps(untrained.policy, [untrained], usual=70) == 70
    assert trained_steps(untrained.policy, [untrained], usual=0) == Finetune().steps
