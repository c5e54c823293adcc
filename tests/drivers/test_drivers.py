"""What every driver must do, whatever it runs trials on."""

import os
import signal
import time
from pathlib import Path

import pytest

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Driver
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import InputError, RunFolderError
from autocompress.policy import Policy
from autocompress.result import Rung, Status, TrialResult
from tests.drivers.searching import Ear, experiment_file, reached, search_of


@pytest.fixture(params=["local", pytest.param("tune", marks=pytest.mark.ray)])
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "local":
        return LocalDriver()
    request.getfixturevalue("running_ray")
    return TuneDriver(concurrency=1)  # a second worker takes six seconds to load


@pytest.fixture
def wide(driver: Driver) -> Driver:
    """Runs as many trials at once as there is room for."""
    return TuneDriver() if isinstance(driver, TuneDriver) else driver


def test_every_trial_is_run_once_and_heard_of_in_order(
    wide: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=4)"), toy_baseline, toy_data)
    ear = Ear(search)
    wide.run(search, job, ear)
    assert sorted(result.number for result in search.results) == [0, 1, 2, 3]
    assert [result.number for result in search.results] == [number for event, number in ear.heard if event == "finished"]
    assert search.running == ()
    for number, result in ear.results.items():
        assert result.status is Status.COMPLETE, result.error
        rungs = len(ear.steps[number])
        assert [event for event, of in ear.heard if of == number] == ["started", *["rung"] * rungs, "finished"]
        assert ear.steps[number] == [rung.step for rung in result.rungs] == sorted(set(ear.steps[number]))
        assert result.model is not None
        assert (job.folder.path / result.model).stat().st_size == result.metrics["size_bytes"]
        assert Policy.from_json((job.folder.trial(number) / "policy.json").read_text()) == result.policy
        assert result.metrics["latency_ms"] > 0


def test_a_failed_trial_does_not_stop_the_search(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    settings = "budget=Budget(trials=3), start=[{'steps': 8}, {'steps': 0, 'bits': 8}, {'steps': 0, 'bits': 7}]"
    task = "class Task(ToyTask):\n    def loss(self, outputs, targets): return super().loss(outputs, targets) * float('nan')"
    search, job = search_of(experiment_file(tmp_path, settings, task=task), toy_baseline, toy_data)
    ear = Ear(search)
    driver.run(search, job, ear)
    assert {number: result.status for number, result in ear.results.items()} == {
        0: Status.FAILED,
        1: Status.COMPLETE,
        2: Status.COMPLETE,
    }
    assert "nan" in (ear.results[0].error or "")
    assert not (job.folder.trial(0) / "model.onnx").exists()


def test_a_search_in_which_every_trial_fails_ends(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    task = "class Task(FailingTask):\n    def __init__(self): super().__init__('score')"
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=3)", task=task), toy_baseline, toy_data)
    driver.run(search, job, Ear(search))
    assert [result.status for result in search.results] == [Status.FAILED] * 3
    assert {result.error for result in search.results} == {"RuntimeError: a mistake in score"}
    assert search.front.members == ()


def test_when_the_time_is_up_trials_under_way_are_finished(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    file = experiment_file(tmp_path, "budget=Budget(trials=None, minutes=1 / 60)")
    search, job = search_of(file, toy_baseline, toy_data)
    ear = Ear(search)
    driver.run(search, job, ear)
    assert "time" in (search.reason or "")
    assert 1 <= len(search.results) < 20
    assert len([event for event, _ in ear.heard if event == "started"]) == len(search.results)


class _Interrupting(Ear):
    """Presses Ctrl-C while the third trial runs."""

    pressed = 0.0

    def rung(self, number: int, rung: Rung) -> None:
        super().rung(number, rung)
        if len(self.steps) == 3 and not self.pressed:
            self.pressed = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_what_is_finished_and_drops_the_rest(
    wide: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=50)"), toy_baseline, toy_data)
    ear = _Interrupting(search)
    handler = signal.getsignal(signal.SIGINT)
    wide.run(search, job, ear)
    assert search.reason == "interrupted"
    assert 1 <= len(search.results) <= 3
    assert {result.number for result in search.results} == set(ear.results)
    assert time.monotonic() - ear.pressed < 20
    assert signal.getsignal(signal.SIGINT) is handler


class _Swallowing(_Interrupting):
    """Loses the Ctrl-C, as Python itself does when it falls into a callback of the garbage collector."""

    def rung(self, number: int, rung: Rung) -> None:
        try:
            super().rung(number, rung)
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass


def test_a_ctrl_c_that_python_lost_ends_the_search(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=50)"), toy_baseline, toy_data)
    ear = _Swallowing(search)
    driver.run(search, job, ear)
    assert search.reason == "interrupted"
    assert len(search.results) <= 4


class _FullDisk(Ear):
    def finished(self, result: TrialResult) -> None:
        raise RunFolderError("the disk is full")


def test_a_record_that_cannot_be_kept_ends_the_search_with_its_own_error(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=50)"), toy_baseline, toy_data)
    with pytest.raises(RunFolderError, match="the disk is full"):
        driver.run(search, job, _FullDisk(search))
    assert search.results == ()


_BREAKING_SPACE = """
Task = ToyTask
BROKEN = []

def broken(trial, layers, target):
    return 1 / 0 if BROKEN else space(trial, layers, target)
"""


def test_a_space_that_fails_ends_the_search_with_its_own_error(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    # The search rehearses the space when it is made; this one breaks after that.
    file = experiment_file(tmp_path, "budget=Budget(trials=50)", task=_BREAKING_SPACE)
    file.write_text(file.read_text().replace("space=space", "space=broken"))
    search, job = search_of(file, toy_baseline, toy_data)
    job.experiment.space.__globals__["BROKEN"].append(True)
    with pytest.raises(InputError, match="ZeroDivisionError"):
        driver.run(search, job, Ear(search))


@pytest.mark.ray
@pytest.mark.usefixtures("running_ray")
def test_the_same_seed_and_policy_give_the_same_result_on_both_drivers(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    heard: list[dict[int, TrialResult]] = []
    for driver in (LocalDriver(), TuneDriver(concurrency=1)):
        folder = tmp_path / type(driver).__name__
        folder.mkdir()
        settings = "budget=Budget(trials=3), seed=5, start=[{'steps': 8}, {'steps': 12}]"
        search, job = search_of(experiment_file(folder, settings), toy_baseline, toy_data)
        ear = Ear(search)
        driver.run(search, job, ear)
        heard.append(ear.results)
    local, tuned = heard
    assert local.keys() == tuned.keys()
    for number, result in local.items():
        other = tuned[number]
        assert (result.policy, result.seed) == (other.policy, other.seed)
        assert reached(result) == reached(other)
        assert _untimed(result.metrics) == _untimed(other.metrics)


def _untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("latency")}
