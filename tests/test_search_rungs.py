"""Early stopping and refits as the search sees them: rungs reported, trials stopped, the best trained further."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from autocompress.experiment import Budget
from autocompress.halving import Halving
from autocompress.policy import Distill, Finetune, Policy
from autocompress.refitting import Refit
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked, Search
from search_spaces import uniform
from tests.test_search import BASELINE, EXPERIMENT, asked_of, measured, search_in, trials_in

SPACE = uniform.make(steps=(90,))
HALVING = Halving(eta=3, rungs=(0.0, 1 / 3))


def rungs_of(asked: Asked) -> list[Rung]:
    """As a trial reports them: the score rises, the size is known from the first on."""
    final = measured(asked).metrics
    known = {name: final[name] for name in ("size_bytes", "latency_ms")}
    steps = asked.policy.finetune.steps
    return [
        Rung(step=step, accuracy=final["accuracy"] - lost, metrics=known, seconds=1.0 + step / 10)
        for step, lost in ((0, 0.2), (steps // 3, 0.05), (steps, 0.0))
    ]


def carry_out(search: Search, asked: Asked) -> TrialResult:
    """What a driver does with a trial."""
    reached = []
    for rung in rungs_of(asked):
        reached.append(rung)
        if not search.report(asked.number, rung):
            result = measured(asked, Status.STOPPED)
            break
    else:
        result = measured(asked)
    seconds = {"finetune": reached[-1].seconds} if result.status is Status.COMPLETE else {}
    result = result.model_copy(update={"rungs": tuple(reached), "refit_of": asked.refit_of, "seconds": seconds})
    search.tell(result)
    return result


def run(search: Search) -> list[TrialResult]:
    results = []
    while (asked := search.ask()) is not None:
        results.append(carry_out(search, asked))
    return results


def searched(study: Path, recorded: Sequence[TrialResult] = (), **changes: Any) -> Search:
    return search_in(study, recorded, **({"space": SPACE} | changes))


def test_with_halving_about_a_third_goes_on_and_the_rest_is_pruned(tmp_path: Path) -> None:
    search = searched(tmp_path / "study.log", halving=HALVING, budget=Budget(trials=40), sampler="random")
    results = run(search)
    at_once = [result for result in results if len(result.rungs) == 1]
    complete = [result for result in results if result.status is Status.COMPLETE]
    assert 20 <= len(at_once) <= 30
    assert 2 <= len(complete) < 15
    states = {trial.number: trial for trial in trials_in(tmp_path / "study.log")}
    for result in results:
        stopped = result.status is Status.STOPPED
        assert states[result.number].state is (TrialState.PRUNED if stopped else TrialState.COMPLETE)
        assert states[result.number].values is None if stopped else states[result.number].values is not None


def test_trials_that_are_trained_are_compared_among_themselves(tmp_path: Path) -> None:
    """Students that need no training are better than others before it: nothing would ever be trained beside them."""

    def mixed(trial: Any, layers: Any, target: Any) -> Policy:
        steps = trial.suggest_categorical("steps", [0, 90])
        share = trial.suggest_float("share", 0.0, 0.8)
        return Policy(channel_sparsity={group.name: share for group in layers.groups}, finetune=Finetune(steps=steps))

    settings: dict[str, Any] = {"space": mixed, "halving": HALVING, "sampler": "random"}
    starts = [{"steps": 0, "share": share} for share in (0.0, 0.25, 0.5, 0.75)]
    starts += [{"steps": 90, "share": share} for share in (0.25, 0.5)]

    def scored(search: Search, number: int) -> bool:
        asked = asked_of(search)
        metrics = {name: measured(asked).metrics[name] for name in ("size_bytes", "latency_ms")}
        trains = asked.policy.finetune.steps > 0
        rung = Rung(step=0, accuracy=0.5 if trains else 0.89 - number / 1000, metrics=metrics, seconds=1.0)
        goes_on = search.report(asked.number, rung)
        search.tell(measured(asked).model_copy(update={"rungs": (rung,)}))
        return goes_on

    search = searched(tmp_path / "study.log", start=starts, budget=Budget(trials=5), **settings)
    assert all(scored(search, number) for number in range(5))
    again = searched(tmp_path / "study.log", search.results, start=starts, budget=Budget(trials=6), **settings)
    assert scored(again, 5), "after a resume too"


def test_without_halving_nothing_is_stopped(tmp_path: Path) -> None:
    results = run(searched(tmp_path / "study.log", budget=Budget(trials=10)))
    assert {result.status for result in results} == {Status.COMPLETE}


def test_rungs_of_earlier_sessions_count(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole.log", halving=HALVING, budget=Budget(trials=24), sampler="random")
    first = searched(tmp_path / "study.log", halving=HALVING, budget=Budget(trials=11), sampler="random")
    before = run(first)
    again = searched(tmp_path / "study.log", before, halving=HALVING, budget=Budget(trials=24), sampler="random")
    assert [r.status for r in (*before, *run(again))] == [r.status for r in run(whole)]


def test_what_is_beyond_a_size_limit_is_not_trained_where_others_keep_to_it(tmp_path: Path) -> None:
    bound = 120.0
    search = searched(
        tmp_path / "study.log",
        halving=Halving(eta=1.5, rungs=(0.0,)),
        limits=(f"size_bytes <= {bound:g}",),
        budget=Budget(trials=30),
        sampler="random",
    )
    results = run(search)
    kept = [result.number for result in results if result.rungs[0].metrics["size_bytes"] <= bound]
    late = [result for result in results if result.number > min(kept) and result.number not in kept]
    assert late
    assert {result.status for result in late} == {Status.STOPPED}


def test_the_best_are_trained_further_when_the_trials_are_used_up(tmp_path: Path) -> None:
    search = searched(tmp_path / "study.log", budget=Budget(trials=8), refit=Refit(models=3, steps=500), sampler="random")
    results = run(search)
    sampled, refits = results[:8], results[8:]
    assert [result.refit_of for result in sampled] == [None] * 8
    assert len(refits) == len({result.refit_of for result in refits}) == 3
    for refit in refits:
        parent = next(result for result in sampled if result.number == refit.refit_of)
        assert refit.policy == parent.policy.model_copy(
            update={"finetune": parent.policy.finetune.model_copy(update={"steps": 500})}
        )
    assert search.reason == "the budget of 8 trials is used up; 3 of the best were trained further"
    stored = {trial.number: trial for trial in trials_in(tmp_path / "study.log")}
    for refit in refits:
        assert stored[refit.number].state is TrialState.COMPLETE
        assert stored[refit.number].params == stored[refit.refit_of or 0].params
        assert stored[refit.number].user_attrs["refit_of"] == refit.refit_of


def test_each_is_refitted_with_as_many_seeds_as_asked_for(tmp_path: Path) -> None:
    search = searched(tmp_path / "study.log", budget=Budget(trials=5), refit=Refit(models=2, steps=50, seeds=3))
    asked = []
    while (one := search.ask()) is not None:
        asked.append(one)
        carry_out(search, one)
    refits = [one for one in asked if one.refit_of is not None]
    assert len(refits) == 6
    assert len({one.refit_of for one in refits}) == 2
    assert len({one.seed for one in refits}) == 6


def test_refits_begin_while_the_last_trials_still_run(tmp_path: Path) -> None:
    search = searched(tmp_path / "study.log", budget=Budget(trials=3), refit=Refit(models=1, steps=50), sampler="random")
    first, second, third = (asked_of(search) for _ in range(3))
    carry_out(search, first)
    refit = asked_of(search)
    assert refit.refit_of == first.number
    for asked in (third, refit, second):
        carry_out(search, asked)
    assert search.ask() is None
    assert len(search.results) == 4


def test_a_resumed_search_goes_on_with_its_refits_and_does_none_twice(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"budget": Budget(trials=6), "refit": Refit(models=3, steps=50), "sampler": "random"}
    search = searched(tmp_path / "study.log", **settings)
    done: list[TrialResult] = []
    for _ in range(7):
        done.append(carry_out(search, asked_of(search)))
    under_way = asked_of(search)
    again = searched(tmp_path / "study.log", done, **settings)
    assert asked_of(again) == under_way
    done.append(carry_out(again, under_way))
    done += run(again)
    assert [result.refit_of is not None for result in done] == [False] * 6 + [True] * 3
    finished = searched(tmp_path / "study.log", done, **settings)
    assert finished.ask() is None
    more = searched(tmp_path / "study.log", done, **{**settings, "budget": Budget(trials=8)})
    after = run(more)
    assert [result.refit_of is not None for result in after[:2]] == [False, False]
    assert not {result.refit_of for result in after[2:]} & {result.refit_of for result in done[6:]}


def test_worker_seconds_are_a_budget_and_a_share_of_it_is_for_refits(tmp_path: Path) -> None:
    # A trial takes 10 seconds, of which the search knows; 25 were spent on the prior.
    experiment = replace(
        EXPERIMENT,
        space=SPACE,
        sampler="random",
        budget=Budget(trials=None, worker_seconds=205),
        refit=Refit(models=2, share=0.5),
    )
    base = search_in(tmp_path / "other.log")
    search = Search(experiment, base._layers, base._baseline, study=tmp_path / "study.log", spent=25.0)
    results = run(search)
    sampled = [result for result in results if result.refit_of is None]
    assert len(sampled) == 8  # 25 + 8 x 10 is the first beyond a half of 205
    refits = [result for result in results if result.refit_of is not None]
    assert refits[0].policy.finetune.steps == 4 * 90
    assert search.used_seconds == pytest.approx(25 + sum(result.compute for result in results))
    assert 150 < search.used_seconds <= 206
    assert "205 worker-seconds are used up" in str(search.reason)


def test_an_untrained_trial_is_refitted_as_long_as_trained_ones_are_within_the_budget(tmp_path: Path) -> None:
    def mixed(trial: Any, layers: Any, target: Any) -> Policy:
        share = trial.suggest_float("share", 0.0, 0.8)
        finetune = Finetune(steps=trial.suggest_categorical("steps", [0, 100]), learning_rate=0.002)
        shares = {group.name: share for group in layers.groups}
        return Policy(channel_sparsity=shares, finetune=finetune, distill=Distill(temperature=3.0))

    def told(one: Asked) -> TrialResult:
        """A step takes a tenth of a second for a million multiply-accumulates."""
        share = next(iter(one.policy.channel_sparsity.values()), 0.0)
        macs = 1e6 * (1 - share)
        result = measured(one)
        known = {**result.metrics, "macs": macs, "accuracy": 0.9 - share / 5 - 0.02 * (one.refit_of is None)}
        seconds = {"finetune": 0.1 * macs / 1e6 * one.policy.finetune.steps, "compress": 1.0}
        return result.model_copy(update={"metrics": known, "seconds": seconds, "refit_of": one.refit_of})

    starts = [{"share": share, "steps": steps} for share, steps in ((0.7, 100), (0.1, 0), (0.4, 0), (0.6, 0))]
    for budget in (Budget(trials=4), Budget(trials=4, worker_seconds=40.0)):
        study = tmp_path / f"{budget.worker_seconds}.log"
        search = searched(study, space=mixed, start=starts, budget=budget, refit=Refit(models=3, share=0.5))
        refits = []
        while (one := search.ask()) is not None:
            refits += [one] if one.refit_of is not None else []
            search.tell(told(one))
        untrained = [one for one in refits if one.refit_of != 0]
        assert untrained, "the three that were not trained score best"
        assert {one.policy.distill for one in untrained} == {Distill(temperature=3.0)}, "trained as the others were"
        assert {one.policy.finetune.learning_rate for one in untrained} == {0.002}
        if budget.worker_seconds is None:
            assert {one.policy.finetune.steps for one in untrained} == {400}, "four times as long as a trial, not as a refit"
        else:
            assert search.used_seconds <= 40.0 + 1.0


def test_an_untrained_trial_is_trained_as_its_space_says(tmp_path: Path) -> None:
    def still(trial: Any, layers: Any, target: Any) -> Policy:
        share = trial.suggest_float("share", 0.0, 0.8)
        return Policy(channel_sparsity={group.name: share for group in layers.groups}, finetune=Finetune(steps=0))

    search = searched(tmp_path / "study.log", space=still, budget=Budget(trials=3), refit=Refit(models=2))
    results = run(search)
    assert [result.refit_of is not None for result in results] == 3 * [False] + 2 * [True]
    assert {result.policy.finetune for result in results[3:]} == {Finetune(steps=800)}
    assert {result.policy.distill for result in results[3:]} == {None}, "as its space says"


def test_where_nothing_was_trained_yet_a_refit_goes_by_what_the_space_asks_of_others(tmp_path: Path) -> None:
    def maybe(trial: Any, layers: Any, target: Any) -> Policy:
        share = trial.suggest_float("share", 0.0, 0.8)
        steps = trial.suggest_categorical("steps", [0, 90])
        return Policy(channel_sparsity={group.name: share for group in layers.groups}, finetune=Finetune(steps=steps))

    starts = [{"share": share, "steps": 0} for share in (0.2, 0.4, 0.6)]
    search = searched(tmp_path / "study.log", space=maybe, start=starts, budget=Budget(trials=3), refit=Refit(models=2))
    assert {result.policy.finetune.steps for result in run(search)[3:]} == {4 * 90}


def test_of_a_budget_of_time_refits_have_their_share_from_early_on(tmp_path: Path) -> None:
    search = searched(
        tmp_path / "study.log", budget=Budget(trials=None, worker_seconds=600.0), refit=Refit(models=2, steps=100, share=0.5)
    )
    results = run(search)
    kinds = [result.refit_of is not None for result in results]
    first = kinds.index(True)
    assert first == 8, "there have to be some to choose from"
    assert not all(kinds[first:]), "the sampling goes on"
    for end in range(first, len(results)):
        before = results[8:end]
        refits = sum(result.compute for result in before if result.refit_of is not None)
        sampling = sum(result.compute for result in results[:end]) < 300
        if sampling:
            assert kinds[end] == (refits <= 0.5 * sum(result.compute for result in before))
    again = searched(tmp_path / "study.log", results[:12], budget=search._experiment.budget, refit=search._experiment.refit)
    assert (asked := again.ask()) is not None
    assert (asked.refit_of is not None) == kinds[12]


def test_time_that_no_refit_is_worth_goes_into_sampling(tmp_path: Path) -> None:
    search = searched(
        tmp_path / "study.log", halving=None, budget=Budget(trials=None, worker_seconds=300.0), refit=Refit(models=2, share=0.5)
    )
    while (asked := search.ask()) is not None:
        assert asked.refit_of is None, "none of them has lost anything that training could bring back"
        metrics = measured(asked).metrics | {"accuracy": BASELINE["accuracy"] + 0.01}
        search.tell(measured(asked).model_copy(update={"metrics": metrics, "seconds": {"finetune": 10.0}}))
    assert 300 <= search.used_seconds <= 310
    assert search.reason == "the 300 worker-seconds are used up"


def test_what_training_may_bring_within_a_limit_the_sampler_is_not_kept_from(tmp_path: Path) -> None:
    def still(trial: Any, layers: Any, target: Any) -> Policy:
        share = trial.suggest_float("share", 0.0, 0.8)
        steps = trial.suggest_categorical("steps", [0, 90])
        return Policy(channel_sparsity={group.name: share for group in layers.groups}, finetune=Finetune(steps=steps))

    limits = ("accuracy >= baseline - 0.1",)
    for refit, within in ((Refit(), True), (None, False)):
        where = tmp_path / f"{within}.log"
        search = searched(
            where, space=still, limits=limits, budget=Budget(trials=1), refit=refit, start=({"share": 0.3, "steps": 0},)
        )
        asked = search.ask()
        assert asked is not None
        lost = measured(asked).model_copy(
            update={"metrics": measured(asked).metrics | {"accuracy": BASELINE["accuracy"] - 0.15}}
        )
        search.tell(lost)
        (trial,) = search._study.get_trials()
        assert (trial.constraints[limits[0]] <= 0) == within
