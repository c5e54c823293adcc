import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autocompress.drivers.local import LocalDriver
from autocompress.errors import InputError, RunFolderError, TaskError
from autocompress.experiment import Budget, load_experiment
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.listeners import Silent
from autocompress.opened import Options, open_run, read_front
from autocompress.result import Status, TrialResult
from autocompress.run import resume, run_search
from autocompress.session import Session
from autocompress.trackers.mlflow_run import MlflowRun
from tests.toy import copy_run, write_experiment


class Watching(Silent):
    """A view that remembers the news, and does something when trials finish."""

    def __init__(self, on_finished: Callable[[int], None] | None = None) -> None:
        self.news: list[str] = []
        self.results: list[TrialResult] = []
        self._on_finished = on_finished

    def say(self, text: str) -> None:
        self.news.append(text)

    def warn(self, text: str) -> None:
        self.news.append(text)

    def finished(self, result: TrialResult) -> None:
        self.results.append(result)
        if self._on_finished is not None:
            self._on_finished(len(self.results))


def interrupt_after(count: int) -> Watching:
    """Presses Ctrl-C when so many trials have finished."""
    return Watching(lambda finished: os.kill(os.getpid(), signal.SIGINT) if finished == count else None)


def numbers(folder: Path) -> list[int]:
    return [result.number for result in RunFolder(folder).results()]


def test_a_finished_run_leaves_everything_in_its_folder(toy_run: Path) -> None:
    folder = RunFolder(toy_run)
    for file in ("run.json", "experiment.py", "study.log", "trials.jsonl", "mlflow.json", "autocompress.log"):
        assert (toy_run / file).stat().st_size > 0, file
    for file in ("front.json", "front.csv", "front.html", "front.md", "front.png", "baseline/model.onnx"):
        assert (toy_run / file).stat().st_size > 0, file
    assert folder.experiment.read_text() == (toy_run.parent / "toy.py").read_text()
    note = open_run(toy_run).note
    assert note.experiment == str(toy_run.parent / "toy.py")
    assert note.versions["torch"].startswith("2.")
    results = folder.results()
    assert len(results) == 4
    for result in results:
        assert result.status is Status.COMPLETE
        assert (toy_run / str(result.model)).stat().st_size == result.metrics["size_bytes"]
    assert "trial 0" in folder.log.read_text()


def test_the_front_is_scored_on_the_test_split(toy_run: Path) -> None:
    front = read_front(RunFolder(toy_run))
    assert front.members
    assert set(front.test) == {member.number for member in front.members}
    assert front.baseline_test is not None
    assert all(score.examples == 256 and score.low < score.accuracy < score.high for score in front.test.values())
    # Validation and test are different pictures: not every score can be the same.
    assert any(front.test[member.number].accuracy != member.metrics["accuracy"] for member in front.members)


def test_mlflow_holds_the_search_and_its_trials(toy_run: Path) -> None:
    noted = MlflowRun.from_json((toy_run / "mlflow.json").read_bytes())
    client = MlflowClient(tracking_uri=noted.tracking_uri)
    parent = client.get_run(str(noted.parent_run_id))
    assert parent.info.status == "FINISHED"
    assert parent.data.params["budget"] == "4 trials"
    nested = client.search_runs([str(noted.experiment_id)], f"tags.mlflow.parentRunId = '{noted.parent_run_id}'")
    assert len(nested) == 4
    page = (toy_run / "front.html").read_text()
    for run in nested:
        assert f'"{run.data.tags["autocompress.trial"]}":"{run.info.run_id}"' in page, "each trial has a link"


def test_a_budget_is_told_whatever_ends_it() -> None:
    assert Budget(trials=None, worker_seconds=800).words == "800 worker-seconds"
    assert Budget(trials=12000, minutes=2.5).words == "12000 trials or 2.5 minutes"


def test_options_replace_what_the_experiment_says(tmp_path: Path) -> None:
    options = Options(minutes=2, seed=7, limits=("size <= 9 kB",), space="uniform")
    experiment = options.apply(load_experiment(write_experiment(tmp_path)))
    assert experiment.budget.trials is None
    assert experiment.budget.minutes == 2
    assert experiment.seed == 7
    assert experiment.parsed_limits[0].bound({}) == 9000
    assert experiment.space.__module__ == "search_spaces.uniform"


def test_resume_goes_on_with_the_count(toy_run: Path, tmp_path: Path) -> None:
    copy_run(toy_run, tmp_path / "run")
    before = (tmp_path / "run/trials.jsonl").read_text()
    scores = read_front(RunFolder(tmp_path / "run")).test
    view = Watching()
    front = resume(tmp_path / "run", driver=LocalDriver(), trials=6, view=view)
    after = (tmp_path / "run/trials.jsonl").read_text()
    assert after.startswith(before)
    assert len(set(numbers(tmp_path / "run"))) == len(numbers(tmp_path / "run")) == 6
    assert len(view.results) == 2
    assert open_run(tmp_path / "run").note.options.trials == 6, "the budget stays raised"
    kept = {member.number for member in front.members} & set(scores)
    assert {number: front.test[number] for number in kept} == {number: scores[number] for number in kept}
    assert set(front.test) == {member.number for member in front.members}


def test_resume_of_a_finished_run_starts_nothing(toy_run: Path, tmp_path: Path) -> None:
    copy_run(toy_run, tmp_path / "run")
    view = Watching()
    assert resume(tmp_path / "run", driver=LocalDriver(), view=view) == read_front(RunFolder(toy_run))
    assert not view.results
    assert any("budget of 4 trials is used up" in news for news in view.news)


def test_ctrl_c_ends_with_the_front_so_far_and_resume_with_the_rest(tmp_path: Path, tracking_uri: str) -> None:
    file = write_experiment(tmp_path, trials=4)
    view = interrupt_after(2)
    front = run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri, view=view)
    assert len(numbers(tmp_path / "run")) == 2
    assert front.members
    assert set(front.test) == {member.number for member in front.members}
    assert (tmp_path / "run/front.html").exists()
    assert any("interrupted" in news for news in view.news)
    resume(tmp_path / "run", driver=LocalDriver())
    assert len(set(numbers(tmp_path / "run"))) == len(numbers(tmp_path / "run")) == 4


def test_ctrl_c_before_any_result_leaves_a_run_to_resume(tmp_path: Path, tracking_uri: str) -> None:
    class AtOnce(Watching):
        def rung(self, number: int, rung: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    file = write_experiment(tmp_path, trials=1)
    with pytest.raises(KeyboardInterrupt):
        run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri, view=AtOnce())
    assert numbers(tmp_path / "run") == []
    resume(tmp_path / "run", driver=LocalDriver())
    assert len(numbers(tmp_path / "run")) == 1


def test_of_a_budget_in_minutes_a_resumed_search_has_what_was_left(toy_run: Path, tmp_path: Path) -> None:
    run = copy_run(toy_run, tmp_path / "run")
    folder = RunFolder(run)
    note = open_run(run).note
    folder.run_json.write_text(note.model_copy(update={"options": Options(minutes=30)}).to_json())
    session = Session.from_json(folder.session.read_bytes())
    assert 0 < session.searched < 600
    folder.session.write_text(session.model_copy(update={"searched": 1800.0}).to_json())
    front = resume(run, driver=LocalDriver())
    assert front.members
    assert len(numbers(run)) == 4, "its time was up"
    after = Session.from_json(folder.session.read_bytes())
    assert after.ended == "the time of 30 minutes is up"
    assert 1800 <= after.searched < 1860
    resume(run, driver=LocalDriver(), minutes=0.02)
    assert len(numbers(run)) > 4, "so many minutes from now"
    assert Session.from_json(folder.session.read_bytes()).searched < 60


def test_kill_9_loses_no_trial_and_runs_none_twice(tmp_path: Path, tracking_uri: str) -> None:
    file = write_experiment(tmp_path, trials=4)
    command = [sys.executable, "-m", "autocompress", "search", str(file), "--run", str(tmp_path / "run"), "--driver", "local"]
    search = subprocess.Popen([*command, "--tracking-uri", tracking_uri], stdout=subprocess.DEVNULL, cwd=tmp_path)
    record = tmp_path / "run/trials.jsonl"
    deadline = time.monotonic() + 120
    while not (record.exists() and record.read_bytes().count(b"\n") >= 2):
        assert search.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    search.kill()
    search.wait()
    done = record.read_text().splitlines()
    assert ParetoFront.from_json((tmp_path / "run/front.json").read_bytes()).members, "the front is kept up to date"
    resume(tmp_path / "run", driver=LocalDriver())
    lines = record.read_text().splitlines()
    assert lines[:2] == done[:2]
    assert len(set(numbers(tmp_path / "run"))) == len(lines) == 4


def test_a_run_that_was_killed_while_the_baseline_was_trained_starts_over(toy_run: Path, tmp_path: Path) -> None:
    copy_run(toy_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/trials")
    for file in ("baseline/baseline.json", "study.log", "trials.jsonl", "front.json", "mlflow.json"):
        (tmp_path / "run" / file).unlink()
    resume(tmp_path / "run", driver=LocalDriver())
    again, before = RunFolder(tmp_path / "run").results(), RunFolder(toy_run).results()
    assert [result.policy for result in again] == [result.policy for result in before], "the seed is the same"
    assert [result.metrics["size_bytes"] for result in again] == [result.metrics["size_bytes"] for result in before]


def test_a_failing_listener_does_not_stop_the_search(tmp_path: Path, tracking_uri: str) -> None:
    def fail(count: int) -> None:
        raise ZeroDivisionError("a mistake in the view")

    file = write_experiment(tmp_path, trials=2)
    run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri, view=Watching(fail))
    assert len(numbers(tmp_path / "run")) == 2
    assert "a mistake in the view" in (tmp_path / "run/autocompress.log").read_text()


def test_a_record_that_cannot_be_written_stops_the_search(tmp_path: Path, tracking_uri: str) -> None:
    class Blocking(Watching):
        def started(self, asked: object) -> None:
            (tmp_path / "run/trials.jsonl").symlink_to("/proc/no such folder/file")

    view = Blocking()
    file = write_experiment(tmp_path, trials=3)
    with pytest.raises(RunFolderError, match=r"cannot write to .*trials.jsonl.*resume"):
        run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri, view=view)
    assert not view.results
    (tmp_path / "run/trials.jsonl").unlink()
    resume(tmp_path / "run", driver=LocalDriver())
    assert len(numbers(tmp_path / "run")) == 3


def test_a_second_process_is_kept_out(tmp_path: Path, tracking_uri: str) -> None:
    seen: list[str] = []

    def try_resume(count: int) -> None:
        assert open_run(tmp_path / "run").is_under_way()
        try:
            resume(tmp_path / "run", driver=LocalDriver())
        except RunFolderError as error:
            seen.append(str(error))

    file = write_experiment(tmp_path, trials=1)
    run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri, view=Watching(try_resume))
    assert len(seen) == 1
    assert "another process is at work" in seen[0]
    assert not open_run(tmp_path / "run").is_under_way()


def test_a_vanished_experiment_is_replaced_by_its_copy(tmp_path: Path, tracking_uri: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/toy_neighbour.py").write_text("from autocompress.testing import ToyTask as Neighbour\n")
    file = write_experiment(tmp_path / "home", classes="from toy_neighbour import Neighbour", task="Neighbour()", trials=1)
    run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    file.unlink()
    view = Watching()
    resume(tmp_path / "run", driver=LocalDriver(), trials=2, view=view)
    assert len(numbers(tmp_path / "run")) == 2
    assert any("is gone" in news for news in view.news)
    (tmp_path / "run/experiment.py").unlink()
    with pytest.raises(RunFolderError, match=r"neither .*toy.py nor .*experiment.py exists"):
        resume(tmp_path / "run", driver=LocalDriver())


def test_a_changed_experiment_is_told(toy_run: Path, tmp_path: Path) -> None:
    copy_run(toy_run, tmp_path / "run")
    note = json.loads((tmp_path / "run/run.json").read_text())
    file = write_experiment(tmp_path, trials=4, name="changed.py")
    file.write_text(file.read_text() + "\n# changed\n")
    (tmp_path / "run/run.json").write_text(json.dumps({**note, "experiment": str(file)}))
    view = Watching()
    resume(tmp_path / "run", driver=LocalDriver(), view=view)
    assert any("has changed since the run began" in news for news in view.news)


def test_objectives_cannot_change(toy_run: Path, tmp_path: Path) -> None:
    copy_run(toy_run, tmp_path / "run")
    note = json.loads((tmp_path / "run/run.json").read_text())
    file = write_experiment(tmp_path, trials=6)
    file.write_text(file.read_text().replace("space=space,", "space=space, objectives=('size', 'accuracy'),"))
    (tmp_path / "run/run.json").write_text(json.dumps({**note, "experiment": str(file)}))
    with pytest.raises(InputError, match="objectives cannot change; start a new run"):
        resume(tmp_path / "run", driver=LocalDriver())


def test_a_test_split_that_fails_costs_no_result(tmp_path: Path, tracking_uri: str) -> None:
    classes = """\
class NoTest(ToyTask):
    def data(self, split):
        if split == "test":
            raise OSError("the disk is gone")
        return super().data(split)
"""
    file = write_experiment(tmp_path, classes=classes, task="NoTest()", trials=1)
    with pytest.raises(TaskError, match=r"the disk is gone; nothing is lost.*resume"):
        run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    assert read_front(RunFolder(tmp_path / "run")).members
    assert (tmp_path / "run/front.csv").exists()
    file.write_text(file.read_text().replace('split == "test"', "False"))
    front = resume(tmp_path / "run", driver=LocalDriver())
    assert set(front.test) == {member.number for member in front.members}


def test_a_search_in_which_every_trial_fails_ends_without_a_front(tmp_path: Path, tracking_uri: str) -> None:
    space = """\
def space(trial, layers, target):
    return Policy(finetune=Finetune(steps=8, learning_rate=trial.suggest_float("rate", 1e-4, 1e-2)))
"""
    file = write_experiment(tmp_path, task="NanTask()", space=space, trials=2)
    front = run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    assert not front.members
    assert not front.nearest
    assert [result.status for result in RunFolder(tmp_path / "run").results()] == [Status.FAILED] * 2


def test_a_mistake_before_the_first_trial_leaves_the_folder_free(tmp_path: Path, tracking_uri: str) -> None:
    file = write_experiment(tmp_path, task="FailingTask('data')", trials=1)
    with pytest.raises(TaskError, match="a mistake in data"):
        run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    write_experiment(tmp_path, trials=1)
    run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    assert len(numbers(tmp_path / "run")) == 1
    with pytest.raises(RunFolderError, match="already holds a run"):
        run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
