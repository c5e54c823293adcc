"""What TPE goes by: the latest trials and the best ones, alike in one session and in many."""

from collections.abc import Container
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autocompress import sampling
from autocompress.experiment import Budget
from autocompress.sampling import BEST, sampler_named, spread
from autocompress.search import Search
from search_spaces import uniform
from tests.test_front import result
from tests.test_search import asked_of, measured, run, search_in

BUDGET = Budget(trials=100)
STATES = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


def study_of(count: int) -> optuna.Study:
    """Two parameters, two objectives; every third trial was stopped, every third failed."""
    study = optuna.create_study(directions=["minimize", "maximize"])
    draw = optuna.samplers.RandomSampler(seed=0)
    made = optuna.create_study(sampler=draw)
    for number in range(count):
        trial = made.ask()
        x, y = space(trial)
        state = STATES[number % 3]
        values = [x * x + y, y - x] if state is TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, params=trial.params, distributions=trial.distributions, values=values))
    return study


def space(trial: Trial) -> tuple[float, float]:
    return trial.suggest_float("x", -1.0, 1.0), trial.suggest_float("y", 0.0, 1.0)


def proposed(study: optuna.Study, sampler: BaseSampler) -> tuple[float, float]:
    study.sampler = sampler
    return space(study.ask())


class Seen:
    """The numbers of the trials from which TPE makes its estimates, once for each time it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers: list[list[int]] = []
        plain = TPESampler._sample

        def noted(sampler: TPESampler, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
            self.numbers.append([one.number for one in study.get_trials(deepcopy=False) if one.number != trial.number])
            return plain(sampler, study, trial, search_space)

        monkeypatch.setattr(TPESampler, "_sample", noted)


def test_as_long_as_the_latest_are_all_tpe_samples_as_it_always_does() -> None:
    ours = [proposed(study_of(60), sampler_named("tpe", seed, BUDGET)) for seed in range(5)]
    plain = [proposed(study_of(60), TPESampler(multivariate=True, seed=seed)) for seed in range(5)]
    assert ours == plain
    assert len(set(ours)) == 5


def test_tpe_learns_nothing_from_refits() -> None:
    """They have the parameters of their trials, but not the training that those stand for."""
    without, study = study_of(60), study_of(60)
    for trial in study.trials[:6:3]:
        refit = create_trial(
            params=trial.params, distributions=trial.distributions, values=[-9.0, 9.0], user_attrs={"refit_of": trial.number}
        )
        study.add_trial(refit)
    assert [proposed(study, sampler_named("tpe", 0, BUDGET, best=[60])) for _ in range(2)] == [
        proposed(without, sampler_named("tpe", 0, BUDGET)) for _ in range(2)
    ]


def test_tpe_goes_by_the_latest_and_the_best_and_by_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LATEST", 12)
    seen = Seen(monkeypatch)
    study = study_of(60)
    under_way = study.ask().number
    proposed(study, sampler_named("tpe", 0, BUDGET, best=[3, 9]))
    latest = [number for number in range(60) if number % 3 != 2][-12:]
    assert seen.numbers == [[3, 9, *latest, under_way]]
    assert len(study.get_trials()) == 62


def test_every_way_in_which_tpe_reads_the_study_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler reads by a method that is not Optuna's to promise: this says when it no longer does."""
    monkeypatch.setattr(sampling, "LATEST", 12)
    study = study_of(60)

    def whole(*given: Any, **named: Any) -> Any:
        raise AssertionError("TPE has read the whole study")

    sampler = sampler_named("tpe", 0, BUDGET)
    study.sampler = sampler
    trial = study.ask()
    part = sampling._Part(study, ())
    assert len(part.get_trials()) == 13
    assert {one.state for one in part.get_trials(states=(TrialState.PRUNED,))} == {TrialState.PRUNED}

    def the_part(*given: Any) -> sampling._Part:
        return part

    read: list[Container[TrialState] | None] = []
    plain = sampling._Part._get_trials

    def noted(self: Any, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> Any:
        read.append(states)
        return plain(self, deepcopy, states, use_cache)

    monkeypatch.setattr(sampling._Part, "_get_trials", noted)
    monkeypatch.setattr(sampling, "_Part", the_part)
    monkeypatch.setattr(study._storage, "get_all_trials", whole)
    space(trial)
    trial.suggest_float("new", 0.0, 1.0)  # by itself: no trial before had it
    assert len(read) >= 4


def test_beyond_the_latest_the_same_seed_still_gives_the_same_policies_in_one_session_or_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LATEST", 10)
    settings: dict[str, Any] = {"budget": Budget(trials=40), "space": uniform.make(steps=(50, 100, 150, 200))}
    whole = run(search_in(tmp_path / "whole.log", **settings))
    parts: list[Any] = []
    results: list[Any] = []
    for _ in range(5):
        search = search_in(tmp_path / "parts.log", results, **settings)
        for asked in run(search, 8):
            parts.append(asked)
        results = list(search.results)
    assert [asked.policy for asked in parts] == [asked.policy for asked in whole]
    assert len(whole) == 40


def test_the_front_is_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LATEST", 5)
    seen = Seen(monkeypatch)
    search = search_in(tmp_path / "study.log", budget=Budget(trials=30))
    run(search, 20)
    front = front_of(search)
    assert min(front) < 10
    seen.numbers.clear()
    search.tell(measured(asked_of(search)))
    assert front <= set(seen.numbers[-1])
    assert len(seen.numbers[-1]) <= len(front) + 5


def front_of(search: Search) -> set[int]:
    return {member.number for member in search.front.members}


def test_of_a_large_front_the_sampler_sees_a_part_that_is_spread_over_it() -> None:
    front = [result(number, 1e6 - number, 1.0, 0.9) for number in range(3 * BEST)]
    assert spread(front[:BEST], "size_bytes") == set(range(BEST)), "all of one that is not so large"
    seen = sorted(spread(front, "size_bytes"))
    assert len(seen) == BEST
    assert (seen[0], seen[-1]) == (0, 3 * BEST - 1), "the largest and the smallest"
    assert max(later - before for before, later in pairwise(seen)) <= 4
    assert spread([], "size_bytes") == set()
