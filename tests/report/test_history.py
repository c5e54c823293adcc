import pytest

from autocompress.report.history import ended_over_time, failures_of, time_split
from autocompress.result import TrialResult
from tests.made import made_failure, made_result, made_results, made_stop
from tests.made_evidence import made_halted, made_refits

START = 1_790_000_000.0


def at(result: TrialResult, seconds: float) -> TrialResult:
    return result.model_copy(update={"started": START + seconds})


def test_every_trial_is_counted_once_by_how_and_when_it_ended() -> None:
    results = [*made_results(), *made_refits()]
    ended = ended_over_time(results)
    assert ended is not None
    assert {state: sum(counts) for state, counts in ended.counts.items()} == {
        "complete": 4,
        "trained further": 3,
        "stopped at a rung": 1,
        "failed": 1,
    }
    assert ended.edges[0] == 0
    assert ended.edges[-1] == pytest.approx(8 * 30 + 20.5, abs=0.1)
    last = [state for state, counts in ended.counts.items() if counts[-1]]
    assert last == ["trained further"]


def test_a_night_between_two_sessions_is_left_out() -> None:
    results = [at(made_result(0, 60_000, 0.3, 0.98), 0), at(made_result(1, 50_000, 0.3, 0.97), 30_000)]
    ended, split = ended_over_time(results), time_split(results, 0.0)
    assert ended is not None
    assert split is not None
    assert ended.edges[-1] == pytest.approx(2 * 20.5, abs=0.1)
    assert split.seconds["idle"] == pytest.approx(0, abs=0.01)


def test_the_time_is_split_by_stage_and_what_is_left_is_idle() -> None:
    results = [at(made_result(0, 60_000, 0.3, 0.98), 0), at(made_result(1, 50_000, 0.3, 0.97), 10)]
    split = time_split(results, 7.0)
    assert split is not None
    assert split.workers == 2
    assert split.seconds == pytest.approx({"prepare": 7, "compress": 1, "train": 40, "idle": 2 * 30.5 - 41})


def test_of_trials_that_were_stopped_only_the_whole_time_is_known() -> None:
    split = time_split([made_halted(0)], 0.0)
    assert split is not None
    assert split.seconds == {"stopped early": 7.0, "idle": 0.0}


def test_failures_are_gathered_by_reason_whatever_the_numbers_in_it() -> None:
    results = [
        made_failure(1, "the file scores 0.1234, the student 0.9"),
        made_failure(2, "DivergedError: the loss was nan after 12 steps"),
        made_failure(3, "DivergedError: the loss was nan after 7 steps"),
        made_failure(4, "no layer 'conv2' here"),
        made_failure(5, "no layer 'conv3' here"),
        made_stop(6),
    ]
    found = failures_of(results)
    assert [(failure.reason, failure.trials) for failure in found] == [
        ("DivergedError: the loss was nan after 12 steps", (2, 3)),
        ("the file scores 0.1234, the student 0.9", (1,)),
        ("no layer 'conv2' here", (4,)),
        ("no layer 'conv3' here", (5,)),
    ]


def test_without_trials_there_is_no_history() -> None:
    assert ended_over_time([]) is None
    assert time_split([], 5.0) is None
    assert failures_of([]) == ()
