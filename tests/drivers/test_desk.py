"""What Tune tells of its trials, and what the search hears of it."""

from pathlib import Path
from typing import Any, Literal

import pytest
from optuna.trial import TrialState

from autocompress.baseline import Baseline, Data
from autocompress.drivers.desk import Desk
from autocompress.drivers.packing import Packing
from autocompress.errors import InputError, RunFolderError
from autocompress.layer import Layers
from autocompress.policy import Policy
from autocompress.result import Environment, GpuMemory, Rung, Status, TrialResult
from autocompress.search import Search
from autocompress.study import open_journal, open_study
from tests.drivers.searching import Ear, experiment_file, search_of


def _desk(
    search: Search, ear: Ear, layers: Layers, *, gpus: float | Literal["auto"] = 0, trial_minutes: float | None = None
) -> Desk:
    """A desk with room for four trials, or for as many as share two GPUs."""
    packing = Packing(gpus, there=True)
    return Desk(
        search,
        ear,
        layers,
        packing=packing,
        most=lambda part: int(2 / part.gpus) if part.gpus else 4,
        trial_minutes=trial_minutes,
    )


def _reported(rung: Rung) -> dict[str, Any]:
    return {"rung": rung.to_json()}


def test_what_tune_reports_becomes_one_result_a_trial(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=2)"), toy_baseline, toy_data)
    ear = Ear(search)
    desk = _desk(search, ear, toy_baseline.layers)
    first, second = desk.ask("a"), desk.ask("b")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (desk.ask("c"), desk.waiting) == (None, True), "the budget is used up, but trials are under way"
    for step in (0, 4, 0, 4, 8):  # the worker died after step 4, and another began again
        assert desk.rung("a", _reported(Rung(step=step, accuracy=0.5)))
    desk.ended("a")
    assert ear.results[first["number"]].status is Status.STOPPED
    assert [rung.step for rung in ear.results[first["number"]].rungs] == [0, 4, 8]
    desk.lost("b", "worker died: somehow")
    desk.lost("b", "told twice")
    desk.ended("b")
    lost = ear.results[second["number"]]
    assert (lost.status, lost.error, lost.seed) == (Status.FAILED, "worker died: somehow", second["seed"])
    assert lost.summary == lost.policy.describe(toy_baseline.layers)
    assert search.results == tuple(ear.results.values())
    assert (desk.ask("d"), desk.waiting) == (None, False)
    assert desk.failure is None


def test_a_rung_passed_again_is_judged_once(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    settings = "budget=Budget(trials=2), halving=Halving(eta=2, rungs=(0.0,)), start=[{'steps': 8}, {'steps': 12}]"
    search, _ = search_of(experiment_file(tmp_path, settings), toy_baseline, toy_data)
    ear = Ear(search)
    desk = _desk(search, ear, toy_baseline.layers)
    trials = desk.ask("good"), desk.ask("bad")
    environment = Environment(cpu="a", cores=1, python="3", versions={})
    good = Rung(step=0, accuracy=0.9, metrics={"size_bytes": 10.0}, seconds=2.0)
    assert desk.rung("good", {**_reported(good), "environment": environment.to_json()})
    assert desk.rung("good", _reported(good.model_copy(update={"accuracy": 0.1, "seconds": 50.0}))), "begun again"
    assert search.used_seconds == 2.0
    bad = Rung(step=0, accuracy=0.2, metrics={"size_bytes": 20.0}, seconds=3.0)
    assert not desk.rung("bad", _reported(bad))
    desk.ended("bad")
    assert desk.rung("good", _reported(Rung(step=4, accuracy=0.9, seconds=4.0)))
    desk.ended("good")
    numbers = [trial["number"] for trial in trials if trial is not None]
    assert [ear.steps[number] for number in numbers] == [[0, 4], [0]]
    results = [ear.results[number] for number in numbers]
    assert [(result.status, result.compute) for result in results] == [(Status.STOPPED, 4.0), (Status.STOPPED, 3.0)]
    assert [result.environment for result in results] == [environment, None]
    assert desk.failure is None


def test_a_trial_that_could_not_begin_has_failed(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=1)"), toy_baseline, toy_data)
    desk = _desk(search, Ear(search), toy_baseline.layers)
    desk.ask("a")
    desk.result("a", {"error": "no checkpoint", "done": True})
    desk.ended("a")
    assert [(result.status, result.error) for result in search.results] == [(Status.FAILED, "no checkpoint")]


class _Failing(Ear):
    def rung(self, number: int, rung: Rung) -> None:
        raise InputError("the disk is full")


def test_files_that_cannot_be_kept_end_the_search_and_fail_no_trial(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=3)"), toy_baseline, toy_data)
    desk = _desk(search, Ear(search), toy_baseline.layers)
    assert desk.ask("a")
    assert desk.ask("b")
    desk.result("a", {"unkept": "cannot write to the trial: No space left on device"})
    desk.ended("a")
    desk.lost("b", "worker died: with all the others")
    assert isinstance(desk.failure, RunFolderError)
    assert "No space left" in str(desk.failure)
    assert (desk.ask("c"), search.results, len(search.running)) == (None, (), 2)


def test_a_trial_that_was_late_says_so_and_one_begun_again_is_not_late_any_more(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=2)"), toy_baseline, toy_data)
    ear = Ear(search)
    desk = _desk(search, ear, toy_baseline.layers, trial_minutes=2.5)
    numbers = [trial["number"] for trial in (desk.ask("a"), desk.ask("b")) if trial is not None]
    for trial in ("a", "b"):
        desk.started(trial)
        desk.late(trial)
    desk.lost("a", "worker died: it was killed")
    desk.started("b")
    desk.lost("b", "worker died: by itself")
    assert [ear.results[number].error for number in numbers] == [
        "took longer than 2.5 minutes (trial_minutes of the experiment)",
        "worker died: by itself",
    ]


def test_a_failure_of_the_listener_closes_the_desk(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=2)"), toy_baseline, toy_data)
    desk = _desk(search, _Failing(search), toy_baseline.layers)
    desk.ask("a")
    assert desk.rung("a", _reported(Rung(step=0, accuracy=0.5))), "Tune ends all trials by itself"
    assert desk.closed
    assert (desk.ask("b"), desk.waiting) == (None, False)
    with pytest.raises(InputError, match="the disk is full"):
        raise desk.failure or AssertionError


def _ended(trial: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    assert trial is not None
    result = TrialResult(
        number=trial["number"],
        policy=Policy.from_json(trial["policy"]),
        status=Status.COMPLETE,
        metrics={"size_bytes": 10.0, "accuracy": 0.5},
        seed=trial["seed"],
        started=0.0,
    )
    return {"result": result.model_copy(update=changes).to_json(), "done": True}


_FULL = {"status": Status.FAILED, "metrics": {}, "error": "OutOfMemoryError: too large", "out_of_memory": True}


def test_one_trial_measures_what_the_others_share_by(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=20)"), toy_baseline, toy_data)
    desk = _desk(search, Ear(search), toy_baseline.layers, gpus="auto")
    probe = desk.ask("probe")
    assert probe is not None
    assert (probe["gpus"], probe["gpu_cap"]) == (1.0, 1.0)
    assert (desk.ask("a"), desk.waiting) == (None, True), "nobody runs beside it"
    desk.result("probe", _ended(probe, status=Status.FAILED, error="too early to say", metrics={}))
    probe = desk.ask("second")
    assert probe is not None
    assert (probe["gpus"], desk.ask("a")) == (1.0, None), "the first has failed before it had measured anything"
    desk.result("second", _ended(probe, gpu=GpuMemory(peak=3_000, outside=200, total=16_000)))
    shared = [desk.ask(name) for name in "abcdefgh"]
    assert [trial and trial["gpus"] for trial in shared] == [0.25] * 8
    assert (desk.ask("i"), desk.waiting) == (None, True), "two GPUs are full"
    desk.result("a", _ended(shared[0], gpu=GpuMemory(peak=5_000, outside=9_000, total=16_000)))
    assert desk.ask("j") is None, "this one took more: later ones are given a half, and as many as that run already"
    assert desk.failure is None


def test_a_trial_short_of_memory_that_had_no_gpu_is_not_begun_again(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    """What its own code took of some GPU would be no less the second time, with as many beside it."""
    search, _ = search_of(experiment_file(tmp_path, "budget=Budget(trials=1)"), toy_baseline, toy_data)
    desk = _desk(search, Ear(search), toy_baseline.layers, gpus=0)
    trial = desk.ask("a")
    assert trial is not None
    desk.started("a")
    desk.result("a", _ended(trial, **_FULL))
    assert [result.error for result in search.results] == ["OutOfMemoryError: too large"]
    assert (desk.ask("b"), desk.waiting, desk.failure) == (None, False, None)


def test_a_trial_short_of_memory_is_begun_again_alone_and_heard_of_once(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=3)"), toy_baseline, toy_data)
    ear = Ear(search)
    desk = _desk(search, ear, toy_baseline.layers, gpus=0.5)
    short, full = desk.ask("a"), desk.ask("b")
    assert short is not None
    assert full is not None
    assert (short["gpus"], short["gpu_cap"]) == (0.5, 0.5)
    for trial_id in ("a", "b"):
        desk.started(trial_id)
        desk.rung(trial_id, _reported(Rung(step=0, accuracy=0.5)))
        desk.result(trial_id, _ended(short if trial_id == "a" else full, **_FULL))
        desk.ended(trial_id)
    assert (search.results, desk.waiting) == ((), True)
    again = desk.ask("c")
    assert again == {**short, "gpus": 1.0, "gpu_cap": 1.0}
    assert (desk.ask("d"), desk.waiting) == (None, True), "no other takes its GPU away before it has begun"
    desk.started("c")
    desk.rung("c", _reported(Rung(step=0, accuracy=0.5)))
    assert (desk.ask("d") or {})["number"] == full["number"]
    desk.started("d")
    desk.result("c", _ended(short))
    desk.result("d", _ended(full, **_FULL))
    desk.ended("d")
    assert [(result.number, result.status) for result in search.results] == [
        (short["number"], Status.COMPLETE),
        (full["number"], Status.FAILED),
    ]
    assert search.results[1].error == "OutOfMemoryError: too large (tried again alone on a GPU)"
    assert ear.steps[short["number"]] == [0]
    assert [ear.heard.count(("started", number)) for number in ear.results] == [1, 1]
    study = open_study(open_journal(job.folder.study), job.experiment, job.folder.study)
    told = {trial.number: (trial.state, trial.values) for trial in study.get_trials() if trial.state.is_finished()}
    assert told[full["number"]] == (TrialState.FAIL, None), "no sampler learns from it"
    assert told[short["number"]] == (TrialState.COMPLETE, [10.0, 0.5])
    assert desk.failure is None
