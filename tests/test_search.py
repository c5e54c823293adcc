import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from autocompress.errors import InputError, RunFolderError, UnknownNameError
from autocompress.experiment import Budget, Experiment
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront, missed
from autocompress.layer import Layers
from autocompress.policy import Finetune, LayerPolicy, Policy
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import EXHAUSTED_AFTER, STATES, Asked, Search
from autocompress.study import STUDY_NAME
from autocompress.target import Target
from autocompress.testing import ToyTask
from autocompress.trackers.jsonl import JsonlRecord
from search_spaces import joint, uniform
from tests.nets import vgg

LAYERS = vgg()
BASELINE = {"size_bytes": 1000.0, "latency_ms": 10.0, "accuracy": 0.9, "params": 1000.0}
EXPERIMENT = Experiment(task=ToyTask(), space=uniform.space, budget=Budget(trials=12))

Study = Path | BaseStorage


def measured(asked: Asked, status: Status = Status.COMPLETE) -> TrialResult:
    """What a trial of this policy comes to, by a formula: smaller is less accurate, steps help."""
    policy = asked.policy
    kept = 1 - sum(policy.channel_sparsity.values()) / len(LAYERS.groups)
    bits = [policy.layers.get(layer.name, LayerPolicy()) for layer in LAYERS]
    width = sum((layer.weight_bits or 32) * (1 - layer.weight_sparsity) for layer in bits) / (32 * len(bits))
    lost = 0.3 * (1 - kept) ** 2 + 0.002 / width - policy.finetune.steps * 1e-5
    metrics = {"size_bytes": 1000 * kept**2 * width, "latency_ms": 10 * kept, "accuracy": 0.9 - lost, "params": 1000 * kept}
    return TrialResult(
        number=asked.number,
        policy=policy,
        status=status,
        metrics=metrics if status is Status.COMPLETE else {},
        rungs=(Rung(step=0, accuracy=0.5),),
        error="it burst" if status is Status.FAILED else None,
        seed=asked.seed,
        started=0.0,
    )


def search_in(study: Study, recorded: Sequence[TrialResult] = (), **changes: Any) -> Search:
    return Search(replace(EXPERIMENT, **changes), LAYERS, BASELINE, study=study, recorded=recorded)


def asked_of(search: Search) -> Asked:
    asked = search.ask()
    assert asked is not None, search.reason
    return asked


def run(search: Search, count: int | None = None) -> list[Asked]:
    """One trial after another, at most `count`."""
    done: list[Asked] = []
    while (count is None or len(done) < count) and (asked := search.ask()) is not None:
        search.tell(measured(asked))
        done.append(asked)
    return done


def trials_in(study: Study) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(study))) if isinstance(study, Path) else study
    return optuna.load_study(study_name=STUDY_NAME, storage=storage).get_trials()


def few(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
    """A space of three policies, asked for in six ways."""
    steps = trial.suggest_categorical("steps", [100, 200, 300])
    trial.suggest_categorical("idle", [0, 1])
    return Policy(finetune=Finetune(steps=steps))


# --- asking and telling


def test_a_search_asks_until_its_budget_is_used_up(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    asked = run(search)
    assert len(asked) == len(search.results) == 12
    assert search.reason == "the budget of 12 trials is used up"
    assert search.ask() is None
    assert search.running == ()
    assert [trial.state for trial in trials_in(tmp_path / "study.log")].count(TrialState.COMPLETE) >= 12


def test_what_is_asked_is_canonical_fits_the_network_and_is_stored(tmp_path: Path) -> None:
    menu = EXPERIMENT.target.menu
    asked = run(search_in(tmp_path / "study.log", space=joint.space))
    stored = {trial.number: trial for trial in trials_in(tmp_path / "study.log")}
    for one in asked:
        one.policy.check(LAYERS, menu)
        assert one.policy.canonical(LAYERS, menu) == one.policy
        assert Policy.from_json(stored[one.number].user_attrs["policy"]) == one.policy
        assert stored[one.number].user_attrs["key"] == one.policy.key()


def test_trials_may_be_told_in_any_order(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    started = [asked_of(search) for _ in range(4)]
    assert search.running == tuple(started)
    for asked in reversed(started):
        search.tell(measured(asked))
    assert [result.number for result in search.results] == [asked.number for asked in reversed(started)]
    assert search.running == ()
    assert [trial.values for trial in trials_in(tmp_path / "study.log")[:4]] == [
        [measured(asked).metrics[metric] for metric in ("size_bytes", "latency_ms", "accuracy")] for asked in started
    ]


def test_running_trials_count_towards_the_budget(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", budget=Budget(trials=3))
    started = [asked_of(search) for _ in range(3)]
    assert search.ask() is None
    for asked in started:
        search.tell(measured(asked))
    assert len(search.results) == 3


def test_a_second_tell_is_ignored_and_a_stray_one_is_an_error(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    asked = asked_of(search)
    search.tell(measured(asked))
    search.tell(measured(asked, Status.FAILED))
    assert [result.status for result in search.results] == [Status.COMPLETE]
    with pytest.raises(ValueError, match="trial 99 was told, but never asked for"):
        search.tell(measured(replace(asked, number=99)))


def test_stop_ends_the_asking_and_not_the_telling(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    asked = asked_of(search)
    search.stop("interrupted")
    assert search.ask() is None
    search.tell(measured(asked))
    assert search.reason == "interrupted"
    assert len(search.results) == 1


def test_the_time_of_the_budget_runs_from_the_beginning(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", budget=Budget(trials=None, minutes=0.02))
    asked = run(search, 1)
    time.sleep(1.2)
    assert search.ask() is None
    assert search.reason == "the time of 0.02 minutes is up"
    assert len(asked) == 1


def test_front_and_hypervolumes_follow_the_results(tmp_path: Path) -> None:
    limits = ("accuracy >= baseline - 0.1",)
    search = search_in(tmp_path / "study.log", limits=limits)
    run(search)
    experiment = replace(EXPERIMENT, limits=limits)
    parsed = (experiment.parsed_objectives, experiment.parsed_limits, BASELINE)
    assert search.front == ParetoFront.of(search.results, *parsed)
    assert search.front.members
    assert search.hypervolumes == [
        ParetoFront.of(search.results[: count + 1], *parsed).hypervolume() for count in range(len(search.results))
    ]
    assert all(before <= after for before, after in pairwise(search.hypervolumes))


# --- every outcome ends as something

OUTCOMES: list[tuple[Status, dict[str, float], TrialState]] = [
    (Status.COMPLETE, {"size_bytes": 1.0, "latency_ms": 2.0, "accuracy": 0.5, "params": 1.0}, TrialState.COMPLETE),
    (Status.COMPLETE, {"size_bytes": 1.0, "latency_ms": 2.0, "params": 1.0}, TrialState.FAIL),
    (Status.COMPLETE, {}, TrialState.FAIL),
    (Status.COMPLETE, {"size_bytes": 1.0, "latency_ms": 2.0, "accuracy": math.nan, "params": 1.0}, TrialState.FAIL),
    (Status.COMPLETE, {"size_bytes": math.inf, "latency_ms": 2.0, "accuracy": 0.5, "params": 1.0}, TrialState.FAIL),
    (Status.COMPLETE, {"size_bytes": 1.0, "latency_ms": -math.inf, "accuracy": 0.5, "params": 1.0}, TrialState.FAIL),
    (Status.COMPLETE, {"size_bytes": 1.0, "latency_ms": 2.0, "accuracy": 0.5}, TrialState.FAIL),  # a limit lacks its metric
    (Status.STOPPED, {}, TrialState.PRUNED),
    (Status.STOPPED, {"size_bytes": math.nan}, TrialState.PRUNED),
    (Status.FAILED, {}, TrialState.FAIL),
    (Status.FAILED, {"size_bytes": 1.0, "latency_ms": 2.0, "accuracy": 0.5, "params": 1.0}, TrialState.FAIL),
]


def test_every_status_has_a_state() -> None:
    assert set(STATES) == set(Status)
    assert {status for status, _, _ in OUTCOMES} == set(Status)


@pytest.mark.parametrize(("status", "metrics", "state"), OUTCOMES)
def test_every_outcome_ends_the_trial(tmp_path: Path, status: Status, metrics: dict[str, float], state: TrialState) -> None:
    search = search_in(tmp_path / "study.log", limits=("params <= 2000",))
    asked = asked_of(search)
    search.tell(measured(asked, status).model_copy(update={"metrics": metrics}))
    (trial,) = trials_in(tmp_path / "study.log")
    assert trial.state is state
    (result,) = search.results
    assert STATES[result.status] is state
    if state is not TrialState.COMPLETE:
        assert trial.user_attrs["rungs"] == [[0, 0.5]]
        assert search.front.members == search.front.nearest == ()
    if state is TrialState.FAIL:
        assert result.error == trial.user_attrs["error"]
        assert result.error
    # The search goes on, with whatever sampler.
    assert len(run(search, 11)) == 11


def test_limits_are_constraints_of_the_study(tmp_path: Path) -> None:
    limits = ("accuracy >= baseline - 0.1", "size <= 0.2 * baseline")
    search = search_in(tmp_path / "study.log", limits=limits)
    run(search)
    parsed = replace(EXPERIMENT, limits=limits).parsed_limits
    results = {result.number: result for result in search.results}
    seen = set()
    for trial in trials_in(tmp_path / "study.log"):
        result = results[trial.user_attrs.get("duplicate_of", trial.number)]
        beyond = missed(result.metrics, parsed, BASELINE)
        seen.add(len(beyond))
        assert set(trial.constraints) == set(limits)
        for limit in parsed:
            assert trial.constraints[limit.text] == pytest.approx(limit.excess(result.metrics, BASELINE))
            assert (trial.constraints[limit.text] > 0) == (limit in beyond)
    assert seen > {0}, "some trials should meet the limits and some not"


def test_a_limit_met_exactly_is_no_violation_for_optuna(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", limits=("accuracy >= baseline - 0.1",))
    asked = asked_of(search)
    exact = {**measured(asked).metrics, "accuracy": math.nextafter(0.9 - 0.1, 0)}
    search.tell(measured(asked).model_copy(update={"metrics": exact}))
    assert search.front.members
    assert trials_in(tmp_path / "study.log")[0].constraints == {"accuracy >= baseline - 0.1": 0.0}


# --- what was run before is not run again


def test_a_repeated_policy_is_answered_from_the_record(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", space=few, sampler="random", budget=Budget(trials=10))
    asked = run(search)
    assert sorted(one.policy.finetune.steps for one in asked) == [100, 200, 300]
    assert len(search.results) == 3
    assert search.reason == f"{EXHAUSTED_AFTER} policies in a row had been run before: the search space is exhausted"
    first = {one.policy.key(): one.number for one in asked}
    trials = trials_in(tmp_path / "study.log")
    assert len(trials) > EXHAUSTED_AFTER
    for trial in trials:
        assert trial.state is TrialState.COMPLETE
        original = first[trial.user_attrs["key"]]
        assert trial.user_attrs.get("duplicate_of", trial.number) == original
        assert trial.values == trials[original].values


@pytest.mark.parametrize("status", list(Status))
def test_a_policy_under_way_is_waited_for(tmp_path: Path, status: Status) -> None:
    search = search_in(tmp_path / "study.log", space=few, sampler="random", budget=Budget(trials=10))
    started = [asked_of(search) for _ in range(3)]
    assert search.ask() is None, "all that is left is under way"
    waiting = [trial for trial in trials_in(tmp_path / "study.log") if trial.state is TrialState.RUNNING]
    assert len(waiting) > EXHAUSTED_AFTER
    for asked in started:
        search.tell(measured(asked, status))
    assert len(search.results) == 3
    trials = trials_in(tmp_path / "study.log")
    assert {trial.state for trial in trials} == {STATES[status]}
    numbers = {asked.number for asked in started}
    assert all(trial.user_attrs["duplicate_of"] in numbers for trial in trials if trial.number not in numbers)


def test_a_failed_policy_is_not_run_again(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", space=few, sampler="random", budget=Budget(trials=10))
    while (asked := search.ask()) is not None:
        search.tell(measured(asked, Status.FAILED))
    assert len(search.results) == 3
    assert {trial.state for trial in trials_in(tmp_path / "study.log")} == {TrialState.FAIL}


def test_a_sampler_that_repeats_itself_does_not_end_the_search(tmp_path: Path) -> None:
    def one_of_many(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        return Policy(finetune=Finetune(steps=trial.suggest_int("steps", 1, 30)))

    search = search_in(tmp_path / "study.log", space=one_of_many, budget=Budget(trials=30))
    asked = run(search)
    assert sorted(one.policy.finetune.steps for one in asked) == list(range(1, 31)), search.reason


def test_repeats_now_and_then_do_not_end_the_search(tmp_path: Path) -> None:
    def one_of_many(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        return Policy(finetune=Finetune(steps=trial.suggest_int("steps", 1, 120)))

    search = search_in(tmp_path / "study.log", space=one_of_many, sampler="random", budget=Budget(trials=116))
    assert len(run(search)) == 116, search.reason
    assert sum("duplicate_of" in trial.user_attrs for trial in trials_in(tmp_path / "study.log")) > EXHAUSTED_AFTER


# --- seeds


def in_words(asked: Sequence[Asked]) -> list[tuple[int, str, int]]:
    return [(one.number, one.policy.key(), one.seed) for one in asked]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_same_seed_gives_the_same_search(tmp_path: Path, sampler: str) -> None:
    one, same, other = (
        in_words(run(search_in(tmp_path / name, space=joint.space, sampler=sampler, seed=seed, budget=Budget(trials=25))))
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    )
    assert one == same
    assert not {key for _, key, _ in one} & {key for _, key, _ in other}
    assert len({seed for _, _, seed in one + other}) == 50


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_an_interrupted_search_is_the_same_search(tmp_path: Path, sampler: str) -> None:
    changes: dict[str, Any] = {"space": joint.space, "sampler": sampler, "budget": Budget(trials=25)}
    whole = in_words(run(search_in(tmp_path / "whole", **changes)))
    asked: list[Asked] = []
    recorded: list[TrialResult] = []
    for session in (1, 6, 9, None):
        search = search_in(tmp_path / "parts", recorded, **changes)
        asked += run(search, session)
        recorded = list(search.results)
        search.ask()  # under way when the process dies
    assert in_words(asked) == whole


def test_a_sampler_learns_from_what_it_is_told(tmp_path: Path) -> None:
    def share_within_limits(sampler: str) -> float:
        search = search_in(
            tmp_path / sampler, sampler=sampler, limits=("accuracy >= baseline - 0.02",), budget=Budget(trials=60)
        )
        run(search)
        late = search.results[30:]
        return sum(result.metrics["accuracy"] >= 0.88 for result in late) / len(late)

    assert share_within_limits("tpe") > share_within_limits("random") + 0.2


def test_a_search_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search = search_in(tmp_path / "study.log", limits=("size <= 0.1 * baseline",), start=({"weight_bits": 3},))
    run(search, 11)
    search.tell(measured(asked_of(search), Status.FAILED))
    search_in(tmp_path / "study.log", search.results)
    assert capfd.readouterr() == ("", "")


# --- samplers


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.NSGAIISampler(seed=0, population_size=4),
        optuna.samplers.QMCSampler(seed=0),
        optuna.samplers.TPESampler(seed=0),
    ],
)
def test_any_optuna_sampler_will_do(tmp_path: Path, sampler: optuna.samplers.BaseSampler) -> None:
    assert len(run(search_in(tmp_path / "study.log", sampler=sampler))) == 12


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.GridSampler({"steps": [100, 200, 300], "idle": [0, 1]}, seed=0),
        optuna.samplers.BruteForceSampler(seed=0),
    ],
)
def test_a_walked_grid_ends_the_search(tmp_path: Path, sampler: optuna.samplers.BaseSampler) -> None:
    search = search_in(tmp_path / "study.log", space=few, sampler=sampler)
    assert len(run(search)) == 3
    assert search.reason == "the sampler has nothing left to propose"
    assert {trial.state for trial in trials_in(tmp_path / "study.log")} == {TrialState.COMPLETE}


def test_an_unknown_sampler_comes_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no sampler 'nsgaii'; did you mean 'nsga2'\?"):
        search_in(tmp_path / "study.log", sampler="nsgaii")
    with pytest.raises(InputError, match="a sampler is one of tpe, nsga2, random, or an Optuna sampler object; given <class"):
        search_in(tmp_path / "study.log", sampler=optuna.samplers.TPESampler)
    assert not (tmp_path / "study.log").exists()


# --- start


def test_start_points_are_tried_first_and_once(tmp_path: Path) -> None:
    start = ({"weight_bits": 3, "channel_sparsity": 0.5}, {"weight_bits": 5, "distill": False})
    search = search_in(tmp_path / "study.log", start=start)
    first = run(search, 1)
    search = search_in(tmp_path / "study.log", search.results, start=start)
    rest = run(search)
    bits = [asked.policy.layers["conv2"].weight_bits for asked in first + rest]
    assert bits[:2] == [3, 5]
    assert set(first[0].policy.channel_sparsity.values()) == {0.5, 1 - 48 / 100}
    assert rest[0].policy.distill is None
    assert sum("fixed_params" in trial.system_attrs for trial in trials_in(tmp_path / "study.log")) == 2


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ({"weight_bit": 4}, r"no parameter of the search space 'weight_bit'; did you mean 'weight_bits'\?"),
        ({"weight_bits": 9}, "start: 'weight_bits' cannot be 9"),
        ({"channel_sparsity": 0.95}, "start: 'channel_sparsity' cannot be 0.95"),
        ({"channel_sparsity": "half"}, "start: 'channel_sparsity' cannot be 'half'"),
    ],
)
def test_a_start_that_the_space_does_not_have_is_refused(tmp_path: Path, start: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        search_in(tmp_path / "study.log", start=(start,))


# --- spaces that do not work


def raising(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
    raise RuntimeError("a mistake\nof two lines")


def nothing(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
    return None  # type: ignore[return-value]


def misspelt(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
    return Policy(layers={"conf2": LayerPolicy(weight_bits=8)})


def half_integer(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
    return Policy(layers={"conv2": LayerPolicy(weight_bits=None, activation_bits=8)})


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        (raising, "RuntimeError: a mistake$"),
        (nothing, "it returned None"),
        (misspelt, r"no layer 'conf2'; did you mean 'conv2'\?"),
        (half_integer, "activation_bits needs weight_bits"),
    ],
)
def test_a_space_that_does_not_work_is_found_before_the_first_trial(
    tmp_path: Path, space: Callable[..., Policy], complaint: str
) -> None:
    with pytest.raises(InputError, match=f"the search space made no valid policy: .*{complaint}"):
        search_in(tmp_path / "study.log", space=space)


def test_a_space_that_fails_now_and_then_leaves_no_trial_running(tmp_path: Path) -> None:
    calls: Iterator[int] = iter(range(10_000))

    def moody(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        policy = uniform.space(trial, layers, target)
        if next(calls) == 22:
            raise RuntimeError("bad mood")
        return policy

    search = search_in(tmp_path / "study.log", space=moody)
    run(search, 2)
    with pytest.raises(InputError, match="bad mood"):
        search.ask()
    trial = trials_in(tmp_path / "study.log")[-1]
    assert trial.state is TrialState.FAIL
    assert "bad mood" in trial.user_attrs["error"]
    run(search)
    assert len(search.results) == 12


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"objectives": ("size", "download_bytes")}, r"no metric 'download_bytes'"),
        ({"limits": ("recall >= baseline",)}, "no metric 'recall'"),
        ({"limits": ("accuracy > 1",)}, "cannot read the limit"),
        ({"seed": -1}, "a seed must be 0 or more, given -1"),
    ],
)
def test_what_would_fail_in_every_trial_is_found_before_the_first(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        search_in(tmp_path / "study.log", **changes)


# --- going on where it stopped


def test_trials_under_way_are_asked_for_again_first(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    run(search, 3)
    under_way = [asked_of(search) for _ in range(2)]
    again = search_in(tmp_path / "study.log", search.results)
    assert in_words([asked_of(again) for _ in range(2)]) == in_words(under_way)
    for asked in under_way:
        again.tell(measured(asked))
    assert len(run(again)) == 12 - 5
    assert len({result.number for result in again.results}) == len(again.results) == 12


def test_a_result_recorded_and_not_told_is_told(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", limits=("size <= 1 MB",))
    run(search, 2)
    statuses = list(Status)
    recorded = [*search.results, *(measured(asked_of(search), status) for status in statuses)]
    again = search_in(tmp_path / "study.log", recorded, limits=("size <= 1 MB",))
    assert again.results == tuple(recorded)
    trials = {trial.number: trial for trial in trials_in(tmp_path / "study.log")}
    for result in recorded:
        assert trials[result.number].state is STATES[result.status]
    assert len(run(again)) == 12 - 5


def test_a_budget_may_be_raised(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    run(search)
    more = search_in(tmp_path / "study.log", search.results, budget=Budget(trials=15))
    assert len(run(more)) == 3
    assert len(more.results) == 15
    less = search_in(tmp_path / "study.log", more.results, budget=Budget(trials=5))
    assert less.ask() is None
    assert len(less.results) == 15


def test_a_lowered_budget_leaves_what_was_under_way_for_later(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    under_way = [asked_of(search) for _ in range(3)]
    less = search_in(tmp_path / "study.log", budget=Budget(trials=1))
    assert in_words(run(less)) == in_words(under_way[:1])
    more = search_in(tmp_path / "study.log", less.results)
    assert in_words(run(more)[:2]) == in_words(under_way[1:])


def test_a_result_recorded_twice_counts_once(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    run(search, 2)
    again = search_in(tmp_path / "study.log", [*search.results, *search.results])
    assert again.results == search.results


def test_duplicates_that_waited_are_answered_in_the_next_session(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"space": few, "sampler": "random", "budget": Budget(trials=10)}
    search = search_in(tmp_path / "study.log", **changes)
    started = [asked_of(search) for _ in range(3)]
    assert search.ask() is None
    recorded = [measured(asked) for asked in started[:2]]
    again = search_in(tmp_path / "study.log", recorded, **changes)
    assert asked_of(again) == started[2]
    again.tell(measured(started[2]))
    again.ask()
    assert {trial.state for trial in trials_in(tmp_path / "study.log")} == {TrialState.COMPLETE}
    assert len(again.results) == 3


def test_duplicates_that_waited_are_answered_also_when_nothing_is_asked_any_more(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"space": few, "sampler": "random", "budget": Budget(trials=4)}
    search = search_in(tmp_path / "study.log", **changes)
    started = [asked_of(search) for _ in range(3)]
    assert search.ask() is None
    search_in(tmp_path / "study.log", [measured(asked) for asked in started], **changes)
    assert {trial.state for trial in trials_in(tmp_path / "study.log")} == {TrialState.COMPLETE}


def test_a_result_removed_from_the_record_may_be_run_again(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log", space=few)
    run(search)
    again = search_in(tmp_path / "study.log", search.results[1:], space=few)
    (asked,) = run(again)
    assert asked.policy == search.results[0].policy
    assert asked.number not in {result.number for result in search.results}


def test_results_outlive_the_study(tmp_path: Path) -> None:
    search = search_in(tmp_path / "study.log")
    run(search, 7)
    (tmp_path / "study.log").unlink()
    again = search_in(tmp_path / "study.log", search.results)
    assert again.results == search.results
    assert again.front == search.front
    assert again.hypervolumes == search.hypervolumes
    rest = run(again)
    assert len(rest) == 5
    assert min(asked.number for asked in rest) > max(result.number for result in search.results)
    assert not {asked.policy.key() for asked in rest} & {result.policy.key() for result in search.results}
    lost = [trial for trial in trials_in(tmp_path / "study.log") if trial.user_attrs.get("error")]
    assert [trial.state for trial in lost] == [TrialState.FAIL] * (max(result.number for result in search.results) + 1)


def test_an_ask_that_was_interrupted_is_finished_in_the_next_session(tmp_path: Path) -> None:
    calls = iter(range(10_000))

    def interrupted(trial: BaseTrial, layers: Layers, target: Target) -> Policy:
        trial.suggest_float("channel_sparsity", 0.0, 0.875, step=0.125)
        if next(calls) == 25:  # after 20 rehearsals, 4 start points and the first ask
            raise KeyboardInterrupt
        return uniform.space(trial, layers, target)

    start = tuple({"weight_bits": bits} for bits in (2, 3, 4, 5))
    search = search_in(tmp_path / "study.log", space=interrupted, start=start, seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(search)
    half = trials_in(tmp_path / "study.log")[len(search.results)]
    assert half.state is TrialState.RUNNING
    assert len(half.params) == 1
    again = search_in(tmp_path / "study.log", search.results, start=start, seed=1)
    asked = asked_of(again)
    assert asked.number == half.number
    assert asked.policy.layers["conv2"].weight_bits == start[half.number]["weight_bits"]
    assert trials_in(tmp_path / "study.log")[asked.number].params.items() > half.params.items()


@pytest.mark.filterwarnings("error:The constraint value is ignored")
def test_a_search_goes_on_from_any_moment_at_which_its_study_was_cut(tmp_path: Path) -> None:
    """Whatever the study has lost against the record, or holds beyond it: no result is lost, no number given twice."""
    changes: dict[str, Any] = {
        "budget": Budget(trials=6),
        "start": ({"weight_bits": 4},),
        "limits": ("size <= 0.2 * baseline",),
    }
    search = search_in(tmp_path / "study.log", **changes)
    first = [asked_of(search), asked_of(search)]
    for asked in reversed(first):
        search.tell(measured(asked))
    run(search, 3)
    content = (tmp_path / "study.log").read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    cuts = [0, *ends, *(end - 7 for end in ends[3::5])]
    for place, cut in enumerate(cuts):
        file = tmp_path / f"cut{place}.log"
        file.write_bytes(content[:cut])
        recorded = search.results[: place % (len(search.results) + 1)]
        again = search_in(file, recorded, **changes)
        assert again.results == recorded
        new = run(again)
        assert len(again.results) == 6, again.reason
        assert len({result.number for result in again.results}) == 6
        assert len({result.policy.key() for result in again.results}) == 6
        assert not {asked.number for asked in new} & {result.number for result in recorded}
        states = {trial.number: trial.state for trial in trials_in(file)}
        assert TrialState.RUNNING not in states.values()
        assert set(states) >= {result.number for result in again.results}


_ENDLESS = """
import sys
from pathlib import Path
from autocompress.experiment import Budget
from autocompress.folder import RunFolder
from autocompress.trackers.jsonl import JsonlRecord
from search_spaces import joint
from tests.test_search import measured, search_in

folder = RunFolder(sys.argv[1])
record = JsonlRecord(folder)
search = search_in(folder.study, folder.results(), space=joint.space, budget=Budget(trials=100_000))
while (asked := search.ask()) is not None:
    result = measured(asked)
    record.finished(result)
    search.tell(result)
"""


def test_killed_at_any_moment_it_goes_on_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while len(folder.results()) < 15:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    recorded = folder.results()
    began = time.monotonic()
    search = search_in(folder.study, recorded, space=joint.space, budget=Budget(trials=len(recorded) + 3))
    run(search)
    assert time.monotonic() - began < 20, "no lock of the dead process is waited for"
    numbers = [result.number for result in search.results]
    assert numbers == list(range(len(recorded) + 3))
    assert search.results[: len(recorded)] == tuple(recorded)


# --- where the study is stored


def _sqlite(folder: Path) -> BaseStorage:
    return RDBStorage(f"sqlite:///{folder / 'study.db'}")


@pytest.mark.parametrize("make", [lambda _: InMemoryStorage(), _sqlite])
def test_any_optuna_storage_will_do(tmp_path: Path, make: Callable[[Path], BaseStorage]) -> None:
    storage = make(tmp_path)
    search = search_in(storage, budget=Budget(trials=4))
    run(search, 2)
    under_way = asked_of(search)
    told_late = measured(asked_of(search))
    again = search_in(storage, [*search.results, told_late], budget=Budget(trials=4))
    assert in_words(run(again)) == in_words([under_way])
    assert [trial.state for trial in trials_in(storage)[:4]] == [TrialState.COMPLETE] * 4


@pytest.mark.parametrize("objectives", [("size", "accuracy"), ("accuracy", "latency", "size"), ("size", "params", "accuracy")])
def test_a_study_of_another_search_is_refused(tmp_path: Path, objectives: tuple[str, ...]) -> None:
    run(search_in(tmp_path / "study.log"), 1)
    with pytest.raises(InputError, match=r"study\.log searches for minimize size_bytes, .* start a new run"):
        search_in(tmp_path / "study.log", objectives=objectives)


def test_a_study_somebody_else_made_is_refused(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    theirs = optuna.create_study(storage=storage, study_name=STUDY_NAME)
    theirs.tell(theirs.ask(), 1.0)
    with pytest.raises(InputError, match=r"in this storage searches for minimize \?"):
        search_in(storage, objectives=("size",))


@pytest.mark.parametrize("damage", ["no json\n", "5\n", '{"op_code": 4}\n', '{"op_code": 99, "worker_id": "x"}\n'])
def test_a_damaged_study_says_how_to_go_on(tmp_path: Path, damage: str) -> None:
    search = search_in(tmp_path / "study.log")
    run(search, 2)
    lines = (tmp_path / "study.log").read_text().splitlines(keepends=True)
    (tmp_path / "study.log").write_text("".join([*lines[:10], damage, *lines[10:]]))
    with pytest.raises(RunFolderError, match="is damaged; remove it and resume"):
        search_in(tmp_path / "study.log", search.results)


def test_a_study_in_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot open the study .*No such file or directory"):
        search_in(tmp_path / "nowhere" / "study.log")


def test_the_record_of_a_folder_is_what_a_search_resumes_from(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record = JsonlRecord(folder)
    search = search_in(folder.study)
    for asked in (asked_of(search), asked_of(search)):
        record.finished(measured(asked))
    assert search_in(folder.study, folder.results()).results == tuple(folder.results())
