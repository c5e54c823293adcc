"""Trials that are stopped early, and trials that go on from where another ended: on both drivers alike."""

import os
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Driver
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.result import Status, TrialResult
from autocompress.search import Search
from autocompress.study import STUDY_NAME, open_journal
from autocompress.trial_files import CHECKPOINT
from tests.drivers.searching import Ear, experiment_file, reached, search_of

_NOTING = """
with (HERE / "loaded").open("a") as file:
    file.write(f"{os.getpid()} ")

Task = ToyTask
"""
# Good and bad ones in turn, so that the first rung tells them apart.
_START = [{"steps": 12, "bits": bits, "zeros": 0.0, "share": 0.0} for bits in (7, 2, 6, 3, 5, 2)]
_HALVING = f"budget=Budget(trials=6), halving=Halving(eta=2, rungs=(0.0, 0.5)), start={_START}"


@pytest.fixture(params=["local", pytest.param("tune", marks=pytest.mark.ray)])
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "local":
        return LocalDriver()
    request.getfixturevalue("running_ray")
    return TuneDriver(concurrency=1)


def test_stopped_trials_are_pruned_in_the_study_with_their_rungs(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, _HALVING, task=_NOTING), toy_baseline, toy_data)
    ear = Ear(search)
    driver.run(search, job, ear)
    stopped = {number: result for number, result in ear.results.items() if result.status is Status.STOPPED}
    assert 0 < len(stopped) < 6
    assert ear.results[0].status is Status.COMPLETE, "nobody to compare it with"
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(job.folder.study))
    for number, result in stopped.items():
        trial = study.trials[number]
        assert trial.state is TrialState.PRUNED
        assert trial.values is None
        assert [rung[:2] for rung in trial.user_attrs["rungs"]] == [list(rung) for rung in reached(result)]
        assert result.rungs[0].metrics["size_bytes"] > 0
        assert result.rungs[-1].step < 12
        assert (result.metrics, result.model, result.error) == ({}, None, None)
        assert result.compute == result.rungs[-1].seconds > 0
        assert result.environment == ear.results[0].environment
        assert not (job.folder.trial(number) / "model.onnx").exists()
    loaded = {int(process) for process in (tmp_path / "loaded").read_text().split()} - {os.getpid()}
    assert len(loaded) == (driver == TuneDriver(concurrency=1)), "one worker, also after a trial was stopped"


@pytest.mark.ray
@pytest.mark.usefixtures("running_ray")
def test_halving_stops_the_same_trials_on_both_drivers(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    heard: list[dict[int, TrialResult]] = []
    for driver in (LocalDriver(), TuneDriver(concurrency=1)):
        folder = tmp_path / type(driver).__name__
        folder.mkdir()
        search, job = search_of(experiment_file(folder, _HALVING), toy_baseline, toy_data)
        ear = Ear(search)
        driver.run(search, job, ear)
        heard.append(ear.results)
    local, tuned = heard
    assert {result.status for result in local.values()} == {Status.COMPLETE, Status.STOPPED}
    assert [(number, result.status, reached(result)) for number, result in local.items()] == [
        (number, result.status, reached(result)) for number, result in tuned.items()
    ]


_UNFINISHED = [{"steps": 12, "bits": 2, "zeros": 0.5, "share": 0.5, "batch": 16}]
_REFIT = f"budget=Budget(trials=1), refit=Refit(models=1, steps=16), start={_UNFINISHED}"


def test_a_refit_goes_on_from_the_checkpoint_of_its_parent(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, _REFIT), toy_baseline, toy_data)
    ear = Ear(search)
    driver.run(search, job, ear)
    parent, refit = ear.results[0], ear.results[1]
    assert (parent.refit_of, refit.refit_of) == (None, 0)
    assert refit.status is Status.COMPLETE, refit.error
    assert parent.rungs[0].accuracy < max(rung.accuracy for rung in parent.rungs)
    assert refit.rungs[0].accuracy == max(rung.accuracy for rung in parent.rungs)
    assert refit.policy.finetune.steps == refit.rungs[-1].step == 16
    assert refit.policy.layers == parent.policy.layers
    assert (job.folder.trial(0) / CHECKPOINT).exists()
    assert (job.folder.trial(1) / CHECKPOINT).exists(), "the module of a refit can be had too"


class _Tidy(Ear):
    """Somebody who keeps no checkpoints."""

    def __init__(self, search: Search, run: Path) -> None:
        super().__init__(search)
        self._run = run

    def finished(self, result: TrialResult) -> None:
        super().finished(result)
        for file in self._run.glob(f"trials/*/{CHECKPOINT}"):
            file.unlink()


def test_a_refit_without_the_checkpoint_of_its_parent_has_failed(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    search, job = search_of(experiment_file(tmp_path, _REFIT), toy_baseline, toy_data)
    ear = _Tidy(search, job.folder.path)
    driver.run(search, job, ear)
    refit = ear.results[1]
    assert (refit.status, refit.refit_of, refit.rungs) == (Status.FAILED, 0, ())
    assert refit.error == "the checkpoint of trial 0 is gone from the run folder; it cannot be trained further"
    assert ear.heard[-2:] == [("started", 1), ("finished", 1)]


class _Careless(Ear):
    """Somebody who changes a bit of the first checkpoint."""

    def __init__(self, search: Search, file: Path) -> None:
        super().__init__(search)
        self._file = file

    def finished(self, result: TrialResult) -> None:
        super().finished(result)
        if result.number == 0:
            content = self._file.read_bytes()
            self._file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_search_goes_on_without_the_refit_whose_checkpoint_is_damaged(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    start = [*_UNFINISHED, {**_UNFINISHED[0], "bits": 3}]
    file = experiment_file(tmp_path, f"budget=Budget(trials=2), refit=Refit(models=2, steps=8), start={start}")
    search, job = search_of(file, toy_baseline, toy_data)
    ear = _Careless(search, job.folder.trial(0) / CHECKPOINT)
    driver.run(search, job, ear)
    refits = {result.refit_of: result for result in ear.results.values() if result.refit_of is not None}
    size = (job.folder.trial(0) / CHECKPOINT).stat().st_size
    assert refits[0].status is Status.FAILED
    assert refits[0].error == (
        f"the checkpoint of trial 0 is damaged: its {size:,} bytes are not those written; it cannot be trained further"
    )
    assert refits[1].status is Status.COMPLETE, refits[1].error
