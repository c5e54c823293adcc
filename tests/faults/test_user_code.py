"""What a user's code may do to a trial: the trial has failed, in one line, and the search goes on."""

import os
import signal
import time
from pathlib import Path

import pytest

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Driver
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import ExperimentError
from autocompress.experiment import Experiment
from autocompress.folder import RunFolder
from autocompress.result import Status, TrialResult
from autocompress.run import resume
from autocompress.testing import ToyTask
from tests.drivers.searching import Ear, experiment_file, search_of
from tests.faults.processes import command, ended, numbers, running
from tests.toy import write_experiment

# By the size of the batch of a trial: what its task does in the loss, and what is said of it.
_TASK = """
import ctypes, sys, torch

class Task(ToyTask):
    def loss(self, outputs, targets):
        loss = super().loss(outputs, targets)
        if len(outputs) == 17:
            {harm}
        return loss
"""
_IN_PYTHON = {
    "a loss that is not finite": ("loss = loss * float('nan')", "the loss is nan at step 1 of 8"),
    "an exception": ("raise KeyError('a mistake\\nin two lines')", "KeyError: 'a mistake\\nin two lines'"),
    "memory of the GPU": (
        "raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    "memory": ("raise MemoryError", "MemoryError: no message"),
    "an endless recursion": ("self.loss(outputs, targets)", "RecursionError: maximum recursion depth exceeded"),
    "no tensor": ("loss = 'low'", "TypeError: isfinite(): argument 'input'"),
}
_START = [{"steps": 8, "batch": batch} for batch in (16, 17, 18)]


def _results(driver: Driver, folder: Path, baseline: Baseline, data: Data, task: str, settings: str) -> list[TrialResult]:
    search, job = search_of(experiment_file(folder, settings, task=task), baseline, data)
    driver.run(search, job, Ear(search))
    return sorted(search.results, key=lambda result: result.number)


@pytest.mark.parametrize("harm", _IN_PYTHON)
def test_what_goes_wrong_in_python(harm: str, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    code, said = _IN_PYTHON[harm]
    settings = f"budget=Budget(trials=1), start={_START[1:2]}"
    (failed,) = _results(LocalDriver(), tmp_path, toy_baseline, toy_data, _TASK.format(harm=code), settings)
    assert failed.status is Status.FAILED
    assert (failed.error or "").startswith(said)
    assert "\n" not in (failed.error or "")


def test_a_loss_that_explodes_is_a_bad_trial_or_a_failed_one(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    settings = f"budget=Budget(trials=2), start={_START[1:]}"
    task = _TASK.format(harm="loss = (loss * 1e30) ** 2")
    exploded, other = _results(LocalDriver(), tmp_path, toy_baseline, toy_data, task, settings)
    assert other.status is Status.COMPLETE
    assert (exploded.status, exploded.error) == (Status.FAILED, "the loss is inf at step 1 of 8")


_SCORES = {"float('nan')": "the score is nan", "'0.9'": "score() must give a number, given '0.9'", "None": "given None"}


@pytest.mark.parametrize("score", _SCORES)
def test_a_score_that_is_no_number(score: str, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    task = f"class Task(ToyTask):\n    def score(self, outputs, targets): return {score}"
    settings = f"budget=Budget(trials=1), start={_START[:1]}"
    for result in _results(LocalDriver(), tmp_path, toy_baseline, toy_data, task, settings):
        assert result.status is Status.FAILED
        assert _SCORES[score] in (result.error or "")


def test_a_search_in_which_all_trials_fail_alike_stops_early_and_says_why(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    task = "class Task(ToyTask):\n    def score(self, outputs, targets): raise OSError(f'no disk {outputs.sum()}')"
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=50)", task=task), toy_baseline, toy_data)
    LocalDriver().run(search, job, Ear(search))
    assert search.hopeless
    assert len(search.results) == 5
    assert (search.reason or "").startswith("all of 5 trials failed for the same reason: OSError: no disk ")
    assert (search.reason or "").endswith("; mend that, then resume")


def test_a_search_whose_trials_fail_in_different_ways_goes_on(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    words = "('one', 'two')[int(abs(outputs.sum()) * 1e4) % 2]"
    task = f"class Task(ToyTask):\n    def score(self, outputs, targets): raise OSError({words})"
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=8)", task=task), toy_baseline, toy_data)
    LocalDriver().run(search, job, Ear(search))
    assert {result.error for result in search.results} == {"OSError: one", "OSError: two"}
    assert (search.hopeless, len(search.results)) == (False, 8)


_SLOW = {
    "sleeps": "time.sleep(1000)",
    "works without end": "while True: pass",
    "hides it": """\
while True:
                try:
                    time.sleep(1000)
                except Exception as error:
                    if (HERE / "heard").exists(): raise
                    (HERE / "heard").touch()""",
}


@pytest.mark.parametrize("way", _SLOW)
def test_a_trial_in_this_process_that_takes_too_long(way: str, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    settings = f"budget=Budget(trials=1), trial_minutes=0.06, start={_START[1:2]}"
    before = signal.getsignal(signal.SIGALRM)
    (slow,) = _results(LocalDriver(), tmp_path, toy_baseline, toy_data, _TASK.format(harm=_SLOW[way]), settings)
    assert (slow.status, slow.error) == (Status.FAILED, "took longer than 0.06 minutes (trial_minutes of the experiment)")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_listener_is_never_broken_off_by_the_time_limit(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    class Slow(Ear):
        def rung(self, number: int, rung: object) -> None:
            time.sleep(1.5)
            heard.append(number)

    heard: list[int] = []
    settings = f"budget=Budget(trials=1), trial_minutes=0.02, start={_START[:1]}"
    search, job = search_of(experiment_file(tmp_path, settings), toy_baseline, toy_data)
    LocalDriver().run(search, job, Slow(search))
    (result,) = search.results
    assert len(result.rungs) == len(heard)


@pytest.mark.parametrize(("setting", "said"), [("trial_minutes", "above 0, given 0"), ("retries", "0 or more, given -1")])
def test_limits_that_mean_nothing(setting: str, said: str) -> None:
    value = {"trial_minutes": 0.0, "retries": -1}[setting]
    with pytest.raises(ExperimentError, match=f"{setting} must be {said}"):
        Experiment(task=ToyTask(), space=lambda *_: None, **{setting: value})  # type: ignore[arg-type]


_DEADLY = """
class Task(ToyTask):
    def loss(self, outputs, targets):
        loss = super().loss(outputs, targets)
        here = os.getpid() != int((HERE / "driver").read_text())
        if here and len(outputs) == 17:
            with (HERE / "exits").open("a") as file: file.write(".")
            os._exit(3)
        if here and len(outputs) == 18:
            import ctypes
            with (HERE / "crashes").open("a") as file: file.write(".")
            ctypes.string_at(0)
        if here and len(outputs) == 19:
            with (HERE / "hangs").open("a") as file: file.write(".")
            os.kill(os.getpid(), signal.SIGSTOP)
        return loss
"""


@pytest.mark.ray
@pytest.mark.usefixtures("running_ray")
def test_workers_that_exit_crash_or_hang(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    """Native code that never returns looks, from outside, as a process does that was stopped."""
    start = [{"steps": 8, "batch": batch} for batch in (16, 17, 18, 19)]
    settings = f"budget=Budget(trials=5), trial_minutes=0.5, retries=0, start={start}"
    file = experiment_file(tmp_path, settings, task=_DEADLY)
    file.write_text(file.read_text().replace("[16, 17, 18]", "[16, 17, 18, 19]"))
    (tmp_path / "driver").write_text(str(os.getpid()))
    search, job = search_of(file, toy_baseline, toy_data)
    TuneDriver().run(search, job, Ear(search))
    results = sorted(search.results, key=lambda result: result.number)
    assert [result.number for result in results] == [0, 1, 2, 3, 4]
    well, exited, crashed, hung, other = results
    late = "took longer than 0.5 minutes (trial_minutes of the experiment)"
    assert (hung.status, hung.error) == (Status.FAILED, late)
    # On a machine that is busy with other things any trial may take that long.
    for result, name in ((exited, "exits"), (crashed, "crashes")):
        assert result.status is Status.FAILED
        assert result.error == late or (result.error or "").startswith("worker died: ")
        assert result.error == late or (tmp_path / name).read_text() == ".", "retries=0"
    for result in (well, other):
        assert result.status is Status.COMPLETE or result.error == late


_ENDING = """
class Deadly(ToyTask):
    def loss(self, outputs, targets):
        loss = super().loss(outputs, targets)
        if len(outputs) == 17:
            os._exit(3)
        return loss
"""
_ENDING_SPACE = """\
import os


def space(trial, layers, target):
    bits = trial.suggest_int("bits", 2, 8)
    layers = {layer.name: LayerPolicy(weight_bits=bits) for layer in layers}
    batch = 17 if trial.number == 1 else 16
    return Policy(layers=layers, finetune=Finetune(steps=4, batch_size=batch))
"""


def test_a_trial_that_ends_the_process_of_the_local_driver_is_given_up_after_two(tmp_path: Path, tracking_uri: str) -> None:
    file = write_experiment(tmp_path, task="Deadly()", classes=_ENDING, space=_ENDING_SPACE, trials=3)
    where = ("--driver", "local", "--tracking-uri", tracking_uri)
    for arguments in (("search", file, "--run", tmp_path / "run", *where), ("resume", tmp_path / "run", *where)):
        with running(command, tmp_path / "said", *arguments) as process:
            assert ended(process) == 3
        assert numbers(tmp_path / "run") == [0]
    resume(tmp_path / "run", driver=LocalDriver())
    results = RunFolder(tmp_path / "run").results()
    assert [(result.number, result.status) for result in results] == [(0, "complete"), (1, "failed"), (2, "complete")]
    assert results[1].error == ("the process died 2 times in this trial; with --driver tune only a worker would")
    assert not list((tmp_path / "run").rglob("begun"))
