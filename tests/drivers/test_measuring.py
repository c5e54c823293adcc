"""What is measured before the first trial: the same on both drivers, whatever becomes of a worker."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Driver, Job
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import InputError, TaskError
from autocompress.option import Option, options
from tests.drivers.searching import experiment_file, search_of

_BUDGET = "budget=Budget(trials=1)"


@pytest.fixture(params=["local", pytest.param("tune", marks=pytest.mark.ray)])
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "local":
        return LocalDriver()
    request.getfixturevalue("running_ray")
    return TuneDriver()


def _job(folder: Path, baseline: Baseline, data: Data, task: str = "Task = ToyTask") -> Job:
    folder.mkdir(exist_ok=True)
    _, job = search_of(experiment_file(folder, _BUDGET, task=task), baseline, data)
    return job


def _some(baseline: Baseline) -> list[Option]:
    return [option for option in options(baseline.layers, baseline.target.menu) if option.value in (0.5, 0.7, 2, 8)]


def _measured(driver: Driver, job: Job, wanted: list[Option]) -> dict[Option, float | None]:
    heard = list(driver.divergences(wanted, job))
    assert sorted(map(str, (option for option, _, _ in heard))) == sorted(map(str, wanted)), "each of them once"
    assert all(seconds > 0 for _, _, seconds in heard)
    return {option: value for option, value, _ in heard}


_NOTING = """
with (HERE / "loaded").open("a") as file:
    file.write(f"{os.getpid()} {os.getpriority(os.PRIO_PROCESS, 0)}\\n")

Task = ToyTask
"""


@pytest.mark.ray
@pytest.mark.usefixtures("running_ray")
def test_divergences_are_the_same_on_both_drivers(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    wanted = _some(toy_baseline)
    job = _job(tmp_path, toy_baseline, toy_data, _NOTING)
    local = _measured(LocalDriver(), job, wanted)
    assert any(value is not None and value > 1e-4 for value in local.values())
    assert _measured(TuneDriver(concurrency=2), job, wanted) == local
    processes = (tmp_path / "loaded").read_text().splitlines()
    assert len(processes) == 3, "here, and once in each worker"
    assert [process.split()[1] for process in processes[1:]] == ["10", "10"], "they give way"


_DEADLY = """
class Task(ToyTask):
    def divergence(self, outputs, reference):
        for file in (HERE / "once", HERE / "always"):
            if file.exists() and not (outputs == reference).all():
                if file.name == "once":
                    file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().divergence(outputs, reference)
"""


@pytest.mark.ray
@pytest.mark.usefixtures("running_ray")
def test_a_killed_worker_is_replaced_and_one_that_is_always_killed_ends_it(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    wanted = _some(toy_baseline)
    job = _job(tmp_path, toy_baseline, toy_data, _DEADLY)
    (tmp_path / "once").touch()
    survived = _measured(TuneDriver(), job, wanted)
    assert not (tmp_path / "once").exists()
    assert survived == _measured(LocalDriver(), job, wanted)
    (tmp_path / "always").touch()
    with pytest.raises(InputError, match=r"^the sensitivities cannot be measured: worker died: .*\Z") as caught:
        list(TuneDriver().divergences(wanted, job))
    assert "\n" not in str(caught.value)


_MISTAKEN = """
class Task(ToyTask):
    def divergence(self, outputs, reference):
        raise RuntimeError("a mistake in divergence\\n  and more of it")
"""


def test_a_mistake_of_the_users_is_told_in_one_line(
    driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    job = _job(tmp_path, replace(toy_baseline), toy_data, _MISTAKEN)
    with pytest.raises(TaskError) as caught:
        list(driver.divergences(_some(toy_baseline), job))
    assert str(caught.value) == "the sensitivities cannot be measured: RuntimeError: a mistake in divergence and more of it"


_SLOW = """
class Task(ToyTask):
    def divergence(self, outputs, reference):
        time.sleep(0.3)
        return super().divergence(outputs, reference)
"""


def test_ctrl_c_ends_the_measuring(driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    job = _job(tmp_path, replace(toy_baseline), toy_data, _SLOW)
    heard = driver.divergences(_some(toy_baseline), job)
    next(heard)
    presser = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    presser.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(heard)
    presser.join()
    assert time.monotonic() - begin < 5


def test_costs_are_those_of_the_target(driver: Driver, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    job = _job(tmp_path, toy_baseline, toy_data)
    table = driver.costs(job, 3)
    assert table.target == job.experiment.target
    assert [layer.name for layer in table.layers] == [layer.name for layer in toy_baseline.layers]
    assert table.size_error.policies == 3
