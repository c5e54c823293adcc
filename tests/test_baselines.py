import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowEntity
from onnx import load, numpy_helper

from autocompress.baselines import run_baselines
from autocompress.compute import INT8, OURS, Standing, curves, standings, used_seconds
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import InputError
from autocompress.folder import RunFolder
from autocompress.listeners import Silent
from autocompress.opened import open_run, read_front
from autocompress.result import Status, TrialResult
from autocompress.rivals import RIVALS
from autocompress.run import run_search
from autocompress.trackers.mlflow_run import MlflowRun
from tests.toy import call, write_experiment

Capture = pytest.CaptureFixture[str]

# A level for the whole network and an offset from it, as in the spaces of ours; every trial takes a moment.
SPACE = """\
def space(trial, layers, target):
    share = trial.suggest_float("channel_sparsity", 0.0, 0.75, step=0.25)
    level = trial.suggest_int("weight_bits", 3, 8)
    bits = {layer.name: min(8, level + trial.suggest_int(f"{layer.name}/weight_bits_offset", 0, 2)) for layer in layers}
    return Policy(
        channel_sparsity={group.name: share for group in layers.groups},
        layers={name: LayerPolicy(weight_bits=width, activation_bits=8) for name, width in bits.items()},
        finetune=Finetune(steps=trial.suggest_categorical("steps", [8, 16])),
    )
"""


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


@pytest.fixture(scope="module")
def alone(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run without rivals. Only to be read: copy it to change it."""
    folder: Path = tmp_path_factory.mktemp("alone")
    file = write_experiment(folder, space=SPACE, trials=4, name="rivalled.py")
    run_search(file, folder / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    return folder / "run"


@pytest.fixture(scope="module")
def rivalled(alone: Path) -> tuple[Path, list[Standing]]:
    """The same folder when all its rivals had their turn. Only to be read."""
    return alone, run_baselines(alone, driver=LocalDriver(), worker_seconds=spend(alone))


def spend(run: Path, trials: float = 0.9) -> float:
    """The worker-seconds of so many trials, at the pace of the run."""
    return trials * used_seconds(RunFolder(run)) / len(RunFolder(run).results())


def copy_of(run: Path, folder: Path) -> Path:
    """The run without its rivals."""
    shutil.copytree(run, folder / "copy", ignore=shutil.ignore_patterns("baselines"))
    return folder / "copy"


def rival_in(run: Path, name: str) -> RunFolder:
    return RunFolder(RunFolder(run).baselines / name)


def weights_in(file: Path) -> list[bytes]:
    return sorted(numpy_helper.to_array(tensor).tobytes() for tensor in load(file).graph.initializer)


def test_every_rival_is_a_run_of_its_own_with_the_same_uncompressed_model(rivalled: tuple[Path, list[Standing]]) -> None:
    run, _ = rivalled
    assert sorted(path.name for path in RunFolder(run).baselines.iterdir()) == sorted(RIVALS)
    ours = open_run(run)
    for name in RIVALS:
        theirs = open_run(rival_in(run, name).path)
        assert theirs.note.baseline_of == "run"
        assert theirs.note.experiment == ours.note.experiment
        assert theirs.baseline().metrics == ours.baseline().metrics
        assert theirs.baseline().file == ours.baseline().file
        assert theirs.front().limits == ours.front().limits
        assert theirs.folder.study.stat().st_size > 0
        assert (theirs.folder.path / "front.html").exists()
        complete = [result for result in theirs.folder.results() if result.status is Status.COMPLETE]
        assert complete
        assert all((theirs.folder.path / str(result.model)).is_file() for result in complete)


def test_a_rival_has_its_worker_seconds_and_no_trial_more(rivalled: tuple[Path, list[Standing]]) -> None:
    run, _ = rivalled
    for name in RIVALS:
        results = rival_in(run, name).results()
        assert sum(result.compute for result in results[:-1]) < spend(run), name
        # The uncompressed one ends sooner when all its lengths have been tried at all three rates, the quantised one is one.
        tried_all = (name == "uncompressed" and len(results) in (3, 6)) or (name == INT8 and len(results) == 1)
        assert tried_all or sum(result.compute for result in results) >= spend(run), name


def test_no_rival_repairs_or_stops_early(rivalled: tuple[Path, list[Standing]]) -> None:
    run, _ = rivalled
    assert any(result.policy.repair for result in RunFolder(run).results())
    for name in RIVALS[:-1]:
        results = rival_in(run, name).results()
        assert not any(result.policy.repair for result in results), name
        assert all(result.status is not Status.STOPPED for result in results), name


def test_the_uncompressed_rival_gives_float_models_with_trained_weights(rivalled: tuple[Path, list[Standing]]) -> None:
    run, found = rivalled
    front, folder = read_front(RunFolder(run)), rival_in(run, "uncompressed")
    results = folder.results()
    assert {result.policy.finetune.steps for result in results} <= {8, 16}
    for result in results:
        assert result.policy.layers == {}
        assert result.metrics["size_bytes"] == pytest.approx(front.baseline["size_bytes"], rel=0.01)
        assert result.metrics["params"] == front.baseline["params"]
    before = weights_in(run / "baseline/model.onnx")
    assert any(weights_in(folder.path / str(result.model)) != before for result in results)
    (standing,) = (one for one in found if one.rival == "uncompressed")
    assert standing.accuracy == max(result.metrics["accuracy"] for result in results)


def test_the_quantised_rival_is_one_model_of_8_bits_that_nobody_trained(rivalled: tuple[Path, list[Standing]]) -> None:
    run, found = rivalled
    assert INT8 not in {standing.rival for standing in found}, "it searches for nothing"
    (result,) = rival_in(run, INT8).results()
    baseline = read_front(RunFolder(run)).baseline
    assert result.policy.channel_sparsity == {}
    assert result.policy.finetune.steps == 0
    assert {layer.weight_bits for layer in result.policy.layers.values()} == {7}  # 8, as they are stored
    assert {layer.activation_bits for layer in result.policy.layers.values()} == {8}
    assert baseline["size_bytes"] / result.metrics["size_bytes"] > 2
    smaller = f"{baseline['size_bytes'] / result.metrics['size_bytes']:.1f}x smaller"
    assert f"Quantised to 8 bits throughout, and no more, the model is {smaller}" in (run / "front.html").read_text()


def test_warm_rivals_begin_with_uniform_policies_and_cold_ones_do_not(rivalled: tuple[Path, list[Standing]]) -> None:
    run, _ = rivalled

    def first(name: str) -> TrialResult:
        return min(rival_in(run, name).results(), key=lambda result: result.number)

    for name in ("nsga2-warm", "tpe-warm"):
        policy = first(name).policy
        assert {layer.weight_bits for layer in policy.layers.values()} == {7}  # 8, as they are stored
        assert policy.channel_sparsity == {}
        assert policy.finetune.steps == 16
    assert first("tpe").policy != first("tpe-warm").policy


def test_the_curves_rise_and_end_at_the_hypervolume_of_the_front(rivalled: tuple[Path, list[Standing]]) -> None:
    run, found = rivalled
    folder = RunFolder(run)
    table = curves(folder)
    assert set(table.searcher) == {OURS, *RIVALS} - {INT8}
    for name, rows in table.groupby("searcher"):
        there = folder if name == OURS else rival_in(run, str(name))
        assert rows.hypervolume.is_monotonic_increasing
        assert rows.worker_seconds.is_monotonic_increasing
        assert len(rows) == len(there.results()) + 1
        assert rows.hypervolume.iloc[-1] == pytest.approx(read_front(there).hypervolume())
    assert [standing.rival for standing in found] == [standing.rival for standing in standings(folder)]
    assert found[0].hypervolume == max(standing.hypervolume for standing in found) > 0


def test_the_report_of_the_run_shows_its_rivals(rivalled: tuple[Path, list[Standing]]) -> None:
    run, found = rivalled
    page = (run / "front.html").read_text()
    drawn = [standing.rival for standing in found if standing.hypervolume]
    assert drawn
    for name in drawn:
        assert f'"{name}"' in page
    assert (run / "search.png").stat().st_size > 0


def test_rivals_are_in_the_same_mlflow_experiment_and_none_is_champion(rivalled: tuple[Path, list[Standing]]) -> None:
    run, _ = rivalled
    noted = MlflowRun.from_json(RunFolder(run).mlflow_json.read_bytes())
    client = MlflowClient(tracking_uri=noted.tracking_uri)
    parents = client.search_runs([str(noted.experiment_id)], "tags.baseline_of = 'run'")
    assert sorted(parent.info.run_name for parent in parents) == sorted(f"run / {name}" for name in RIVALS)
    for parent in parents:
        assert parent.info.status == "FINISHED"
        assert parent.data.params["rival"] == str(parent.info.run_name).removeprefix("run / ")
        trials = nested_in(client, noted, parent.info.run_id)
        assert len(trials) == len(rival_in(run, parent.data.params["rival"]).results())
    champion = client.get_model_version_by_alias("rivalled", "champion")
    assert len(client.search_model_versions("name = 'rivalled'")) == 1
    assert champion.run_id in {trial.info.run_id for trial in nested_in(client, noted, str(noted.parent_run_id))}


def nested_in(client: MlflowClient, noted: MlflowRun, parent: str) -> list[MlflowEntity]:
    return list(client.search_runs([str(noted.experiment_id)], f"tags.mlflow.parentRunId = '{parent}'"))


def test_called_again_it_skips_what_is_complete_and_goes_on_with_more_to_spend(alone: Path, tmp_path: Path) -> None:
    run = copy_of(alone, tmp_path)
    run_baselines(run, driver=LocalDriver(), rivals=["random"], worker_seconds=0.1)
    before = rival_in(run, "random").record.read_text()
    assert before.count("\n") == 1
    view = Watching()
    run_baselines(run, driver=LocalDriver(), rivals=["random"], worker_seconds=0.1, view=view)
    assert rival_in(run, "random").record.read_text() == before
    assert not view.results
    assert any("random: had its" in news for news in view.news)
    spent = used_seconds(rival_in(run, "random"))
    run_baselines(run, driver=LocalDriver(), rivals=["random"], worker_seconds=spent + 0.1, view=view)
    after = rival_in(run, "random").record.read_text()
    assert after.startswith(before)
    assert after.count("\n") == 2


def test_a_rival_goes_on_when_the_run_has_grown_since(alone: Path, tmp_path: Path) -> None:
    run = copy_of(alone, tmp_path)
    run_baselines(run, driver=LocalDriver(), rivals=["uncompressed"], worker_seconds=0.1)
    last = RunFolder(run).results()[-1]
    longer = last.policy.model_copy(
        update={"finetune": last.policy.finetune.model_copy(update={"steps": 40, "learning_rate": 0.5})}
    )
    grown = [
        last.model_copy(update={"number": last.number + more, "policy": longer, "started": time.time()}) for more in range(1, 9)
    ]
    with RunFolder(run).record.open("a") as record:
        record.writelines(result.to_json() + "\n" for result in grown)
    before, spent = len(rival_in(run, "uncompressed").results()), used_seconds(rival_in(run, "uncompressed"))
    run_baselines(run, driver=LocalDriver(), rivals=["uncompressed"], worker_seconds=spent + 0.1)
    steps = [result.policy.finetune.steps for result in rival_in(run, "uncompressed").results()]
    assert len(steps) > before
    assert max(steps) <= 16, "what it is made of is what the run was when it began"


def test_ctrl_c_ends_all_rivals_and_calling_again_goes_on(alone: Path, tmp_path: Path) -> None:
    run = copy_of(alone, tmp_path)
    view = Watching(lambda count: os.kill(os.getpid(), signal.SIGINT) if count == 1 else None)
    found = run_baselines(run, driver=LocalDriver(), rivals=["uniform", "random"], worker_seconds=1000, view=view)
    assert [(standing.rival, standing.trials) for standing in found] == [("uniform", 1)]
    folder = rival_in(run, "uniform")
    first = folder.record.read_text()
    assert not rival_in(run, "random").path.exists()
    run_baselines(run, driver=LocalDriver(), rivals=["uniform"], worker_seconds=used_seconds(folder) + 0.01)
    assert folder.record.read_text().startswith(first)
    assert len({result.number for result in folder.results()}) == len(folder.results()) == 2


def test_a_rival_may_spend_what_the_run_has_spent(alone: Path, tmp_path: Path) -> None:
    run = copy_of(alone, tmp_path)
    results = RunFolder(run).results()
    (run / "trials.jsonl").write_text("".join(result.to_json() + "\n" for result in results[:1]))
    run_baselines(run, driver=LocalDriver(), rivals=["random"])
    done = json.loads((rival_in(run, "random").path / "rival.json").read_text())
    assert done["worker_seconds"] == pytest.approx(results[0].compute)


@pytest.mark.ray
def test_rivals_run_on_ray_with_their_own_policies(alone: Path, tmp_path: Path) -> None:
    run = copy_of(alone, tmp_path)
    (standing,) = run_baselines(run, driver=TuneDriver(concurrency=2), rivals=["uniform"], worker_seconds=0.5)
    results = rival_in(run, "uniform").results()
    assert standing.trials == len(results) >= 1
    assert all(result.status is Status.COMPLETE and not result.policy.repair for result in results)
    assert all((rival_in(run, "uniform").path / str(result.model)).is_file() for result in results)


# --- the command


def test_the_command_says_how_they_compare(alone: Path, tmp_path: Path, capsys: Capture) -> None:
    run = copy_of(alone, tmp_path)
    options = ("--rivals", "random,int8,uncompressed", "--worker-seconds", "0.3", "--driver", "local")
    assert call("baseline", run, *options) == 0
    out = capsys.readouterr().out
    assert "random: 0.3 worker-seconds" in out
    assert re.search(r"trial 0: .*x smaller", out)
    assert re.search(r"^│random +│ +\d+ │ +\d+ │ +0\.\d{4} │ +0\.\d{4} │ ", out, re.MULTILINE)
    assert re.search(r"^│uncompressed +│ ", out, re.MULTILINE)
    assert re.search(r"Quantised to 8 bits throughout, and no more, the model is \d\.\dx smaller", out.replace("\n", " "))
    assert "Fine-tuned in the same way but not compressed, the model scores" in out
    assert f"look at the curves {run / 'front.html'}" in out
    assert call("baseline", run, *options, "--quiet") == 0
    again = capsys.readouterr().out
    assert "worker-seconds\n" not in again.partition("rival")[0]
    assert again.splitlines() == out.splitlines()[-len(again.splitlines()) :]


def test_a_rival_that_beats_the_run_is_said_to(alone: Path, tmp_path: Path, capsys: Capture) -> None:
    run = copy_of(alone, tmp_path)
    results = RunFolder(run).results()
    poor = [result.model_copy(update={"metrics": {**result.metrics, "accuracy": 0.0}}) for result in results]
    (run / "trials.jsonl").write_text("".join(result.to_json() + "\n" for result in poor))
    # On some CPUs integers are no faster than floats in so small a network: time enough for policies with fewer channels.
    assert call("baseline", run, "--rivals", "uniform", "--worker-seconds", "12", "--driver", "local", "--quiet") == 0
    out = capsys.readouterr().out
    assert re.search(r"^│uniform .* never ", out, re.MULTILINE)
    assert "The search did not reach what uniform came to" in out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--rivals", "random,nsga3"), "no rival 'nsga3'; did you mean 'nsga2'"),
        (("--rivals", ""), "no rival ''"),
        (("--worker-seconds", "0"), "worker_seconds must be above 0"),
        (("--driver", "lokal"), "no driver 'lokal'; did you mean 'local'"),
        (("--rivals", "random", "--tracking-uri", "ftp://nowhere"), "scheme"),
    ],
)
def test_what_cannot_be_used_ends_with_2(alone: Path, options: tuple[str, ...], complaint: str, capsys: Capture) -> None:
    assert call("baseline", alone, "--driver", "local", *options) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_a_run_without_results_has_no_compute_to_match(alone: Path, tmp_path: Path, capsys: Capture) -> None:
    run = copy_of(alone, tmp_path)
    (run / "trials.jsonl").unlink()
    assert call("baseline", run, "--driver", "local") == 2
    assert "has no finished trial: there is no compute to match" in capsys.readouterr().err
    assert call("baseline", tmp_path / "nowhere", "--driver", "local") == 2
    assert "no run folder" in capsys.readouterr().err
    assert not (run / "baselines").exists()


def test_a_space_without_levels_has_no_warm_rivals(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    run = copy_of(toy_run, tmp_path)
    assert call("baseline", run, "--driver", "local", "--rivals", "tpe-warm") == 2
    assert "a warm start is not known; leave out -warm" in capsys.readouterr().err


def test_a_rival_is_resumed_and_rivalled_by_way_of_its_run_only(rivalled: tuple[Path, list[Standing]], capsys: Capture) -> None:
    run, _ = rivalled
    assert call("resume", rival_in(run, "tpe").path, "--driver", "local") == 2
    assert "is a rival of the run run; go on with it by `autocompress baseline`" in capsys.readouterr().err
    with pytest.raises(InputError, match="is itself a rival"):
        run_baselines(rival_in(run, "tpe").path, driver=LocalDriver())


def test_rivals_wait_for_a_search_that_is_under_way(alone: Path, tmp_path: Path, capsys: Capture) -> None:
    run = copy_of(alone, tmp_path)
    with (run / "autocompress.log").open() as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert call("baseline", run, "--driver", "local") == 2
    assert "a search is under way" in capsys.readouterr().err
