import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from autocompress.experiment import Budget, Experiment
from autocompress.objective import USUAL
from autocompress.pace import Earlier
from autocompress.policy import Policy
from autocompress.progress import LiveView, PlainView, Tally, result_in_words
from autocompress.refitting import Refit
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked
from autocompress.testing import ToyTask
from search_spaces import uniform
from tests.made import BASELINE, LIMITS, made_failure, made_result, made_results, made_stop
from tests.made_evidence import made_halted, made_refits


def experiment_of(**budget: Any) -> Experiment:
    return Experiment(task=ToyTask(), space=uniform.space, budget=Budget(**budget))


def asked(number: int, refit_of: int | None = None) -> Asked:
    return Asked(number=number, policy=Policy(), seed=0, refit_of=refit_of)


def tally_of(results: list[TrialResult], *, before: int = 0, spent: float = 0.0, **budget: Any) -> Tally:
    """A tally that has heard of all but the first `before` results."""
    tally = Tally(experiment_of(**budget), BASELINE, Earlier(tuple(results[:before]), spent))
    for result in results[before:]:
        tally.started(asked(result.number, result.refit_of))
        tally.finished(result)
    return tally


def lines_of(view: PlainView) -> list[str]:
    file = view._console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def plain() -> PlainView:
    return PlainView(Console(file=io.StringIO(), width=80))


def test_what_came_of_a_trial_in_words() -> None:
    assert result_in_words(made_halted(5), BASELINE, USUAL) == (
        "stopped at step 50: 10.0x smaller, 2.00x faster, accuracy 0.4100 (-75% channels, w2 a8, 150 steps)"
    )
    assert result_in_words(made_stop(5), BASELINE, USUAL) == "stopped at step 0: accuracy 0.3000 ()"
    assert result_in_words(made_refits()[1], BASELINE, USUAL) == (
        "trial 1 trained further: 17.5x smaller, 3.64x faster, accuracy 0.9760 (-50% channels, w4 a8, 107 steps, KD T=4)"
    )
    assert result_in_words(made_failure(3, "out of memory"), BASELINE, USUAL) == "failed: out of memory"


def test_a_tally_that_has_heard_of_each_trial_is_one_that_knew_them_all() -> None:
    results = [*made_refits(), made_result(1, 60_000, 0.3, 0.98), made_halted(0), made_failure(9, "it burst")]
    budget: dict[str, Any] = {"trials": 40, "worker_seconds": 500}
    heard, known = (tally_of(results, before=before, spent=3.0, **budget) for before in (2, len(results)))
    assert heard.done_of() == known.done_of() == "3/40, 3 trained further, 92/500 worker-seconds"
    assert [heard.count(status) for status in Status] == [known.count(status) for status in Status] == [4, 1, 1]
    assert heard.front() == known.front()


def test_a_log_has_a_line_for_every_trial_that_says_how_far_the_search_is() -> None:
    view = plain()
    experiment = replace(experiment_of(trials=3), refit=Refit())
    view.begin(experiment, BASELINE, Earlier())
    results = [made_result(0, 60_000, 0.3, 0.98), made_halted(1), made_failure(2, "nan"), made_refits()[0]]
    for result in results:
        view.started(asked(result.number, result.refit_of))
        view.finished(result)
    view.started(asked(7, 1))
    heads = [re.sub(r", \d:\d\d:\d\d left", "", line.split("]")[0] + "]") for line in lines_of(view)[1:]]
    assert heads[:3] == ["[1/3]", "[2/3, 1 stopped]", "[3/3, 1 stopped, 1 failed]"]
    assert lines_of(view)[4] == "training the best models further"
    assert heads[4] == "[3/3, 1 trained further, 1 stopped, 1 failed]"
    assert len(heads) == 5, "it is said once"


def test_measurements_before_the_first_trial_are_a_line_for_every_tenth() -> None:
    view = plain()
    for done in range(1, 301):
        view.measuring("sensitivities", done, 300)
    for done in range(1, 4):
        view.measuring("costs", done, 3)
    assert lines_of(view) == [
        *(f"measuring sensitivities {done}/300" for done in range(30, 301, 30)),
        *(f"measuring costs {done}/3" for done in (1, 2, 3)),
    ]


def test_worker_seconds_count_what_was_spent_before_and_by_every_trial() -> None:
    tally = tally_of([made_halted(0), made_result(1, 60_000, 0.3, 0.98)], spent=12.5, trials=None, worker_seconds=100)
    assert tally.pace.used == 12.5 + 7 + 20.5
    assert tally.share() == pytest.approx(0.4)
    assert tally.done_of() == "2, 40/100 worker-seconds"


def test_a_refit_is_no_trial_of_the_budget() -> None:
    tally = tally_of([made_result(0, 60_000, 0.3, 0.98), *made_refits()[:1]], trials=4)
    assert tally.share() == 0.25
    assert tally.done_of() == "1/4, 1 trained further"


def drawn(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view._render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_live_view_shows_what_is_measured_and_what_runs() -> None:
    view = LiveView(Console(file=io.StringIO(), width=120))
    view.say("measuring how sensitive each layer is")
    view.measuring("sensitivities", 120, 300)
    assert "measuring sensitivities 120/300" in drawn(view)
    view.begin(replace(experiment_of(trials=3), refit=Refit()), BASELINE, Earlier(spent=12))
    assert "sensitivities" not in drawn(view)
    view.started(asked(0))
    view.started(asked(1, refit_of=0))
    assert "trial 0: compressing" in drawn(view)
    assert "trial 1: training trial 0 further" in drawn(view)
    view.rung(0, Rung(step=0, accuracy=0.3, metrics={"size_bytes": 42_000, "latency_ms": 0.4}))
    assert "trial 0: 10.0x smaller, 2.00x faster, accuracy 0.3000 after 0 steps" in drawn(view)
    view.rung(0, Rung(step=50, accuracy=0.41))
    assert "trial 0: 10.0x smaller, 2.00x faster, accuracy 0.4100 after 50 steps" in drawn(view)
    view.finished(made_halted(0))
    assert "1/3 done  1 running  1 stopped  0 failed" in drawn(view)
    assert "trial 0: stopped at step 50: 10.0x smaller" in drawn(view)
    view.begin(experiment_of(trials=3), BASELINE, Earlier())
    assert "stopped at" not in drawn(view), "another search"


def test_the_live_view_has_a_small_front_that_grows() -> None:
    view = LiveView(Console(file=io.StringIO(), width=120))
    view.begin(replace(experiment_of(trials=9), limits=LIMITS), BASELINE, Earlier())
    first, second, third = (result for result in made_results() if result.number in (0, 1, 4))
    for result in (first, second):
        view.started(asked(result.number))
        view.finished(result)
    assert "best so far: trial 1, 17.5x smaller, 3.64x faster, accuracy 0.9750; 2 on the front" in drawn(view)
    view.started(asked(4))
    view.finished(third)
    rows = [" ".join(line.split()) for line in drawn(view).splitlines()]
    assert rows[-3:] == [
        "trial 4 46.7x smaller 5.33x faster accuracy 0.9400 smallest, fastest",
        "trial 1 17.5x smaller 3.64x faster accuracy 0.9750 knee",
        "trial 0 7.0x smaller 2.67x faster accuracy 0.9810 best",
    ]
