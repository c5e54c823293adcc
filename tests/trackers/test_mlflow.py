import json
import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from autocompress.credentials import public_uri
from autocompress.errors import RunFolderError, UnreachableError
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.objective import Limit
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.report import write_report
from autocompress.result import TrialResult
from autocompress.trackers import mlflow_store
from autocompress.trackers.jsonl import JsonlRecord
from autocompress.trackers.mlflow import MlflowTracker, check_reachable, one_line, sync
from autocompress.trackers.mlflow_run import MlflowRun, absolute_uri, default_uri
from autocompress.trackers.mlflow_trial import policy_params
from tests.made import (
    BASELINE,
    LAYERS,
    LIMITS,
    OBJECTIVES,
    made_folder,
    made_front,
    made_many,
    made_result,
    made_results,
)
from tests.made_evidence import made_halted, made_run, made_sensitivity
from tests.servers import free_port, kill, mlflow_at, mlflow_serving

EXPERIMENT = "mnist_vgg"
DATASETS = {"train": 3000, "validation": 1000, "test": 1000}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_uri(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return made_folder(tmp_path / "run", [])


def tracker_of(folder: RunFolder, uri: str | None, **changes: Any) -> MlflowTracker:
    known: dict[str, Any] = {
        "experiment_name": EXPERIMENT,
        "title": "mnist_vgg 2026-11-23",
        "settings": {"sampler": "tpe", "trials": "6"},
        "layers": LAYERS,
        "objectives": OBJECTIVES,
        "limits": LIMITS,
        "baseline": BASELINE,
        "datasets": DATASETS,
    }
    return MlflowTracker(folder, uri, **(known | changes))


def search(folder: RunFolder, tracker: MlflowTracker, results: Sequence[TrialResult]) -> None:
    """What a driver does with results: to the record first, then to the tracker."""
    tracker.start()
    for result in results:
        made_folder(folder.path, [*folder.results(), result])
        tracker.finished(result)


def report(folder: RunFolder, front: ParetoFront) -> None:
    folder.front_json.write_text(front.to_json())
    for end in ("csv", "html", "png"):
        folder.front_json.with_suffix(f".{end}").write_text(end)


def tracked(folder: RunFolder, uri: str, results: Sequence[TrialResult]) -> ParetoFront:
    """A whole search, from start to close."""
    tracker = tracker_of(folder, uri)
    search(folder, tracker, results)
    front = made_front(folder.results())
    report(folder, front)
    assert tracker.close(front) == 0
    assert tracker.message is None
    return front


def runs_of(client: MlflowClient, name: str = EXPERIMENT) -> tuple[Run, dict[int, Run]]:
    """The only parent of an experiment, and its nested runs by trial."""
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id], max_results=5000))
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parents[0].info.run_id}
    by_trial = {int(run.data.tags["autocompress.trial"]): run for run in nested}
    assert len(by_trial) == len(nested), "a trial is there twice"
    return parents[0], by_trial


def everything(client: MlflowClient, name: str = EXPERIMENT) -> dict[str, Any]:
    """All that an experiment holds of a search, without ids and clock times."""
    parent, nested = runs_of(client, name)
    models = list(client.search_logged_models([parent.info.experiment_id]))
    seen: dict[str, Any] = {}
    for what, run in [("parent", parent), *((f"trial {number}", run) for number, run in nested.items())]:
        own = [model for model in models if model.source_run_id == run.info.run_id]
        seen[what] = {
            "status": run.info.status,
            "params": run.data.params,
            "tags": {
                key: value.replace(run.info.run_id, "its id")
                for key, value in run.data.tags.items()
                if key not in ("autocompress.run", "mlflow.parentRunId")
            },
            "metrics": run.data.metrics,
            "histories": {
                key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
                for key in ("hypervolume", "hypervolume_by_worker_seconds", "rung_accuracy", "size_bytes", "test_accuracy")
            },
            "artifacts": sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id)),
            "datasets": len(run.inputs.dataset_inputs) if run.inputs else 0,
            "models": [(model.name, model.status.value, sorted(model.tags), model.params) for model in own],
            "outputs": sorted(o.model_id for o in run.outputs.model_outputs) == sorted(m.model_id for m in own)
            if run.outputs
            else not own,
        }
    seen["versions"] = [version.tags for version in client.search_model_versions(f"name = '{name}'")]
    return seen


def test_loading_the_tracker_does_not_load_mlflow() -> None:
    code = "import sys, autocompress.trackers.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_search_is_a_parent_with_a_nested_run_for_every_trial(folder: RunFolder, uri: str) -> None:
    front = tracked(folder, uri, made_results())
    client = MlflowClient(tracking_uri=uri)
    parent, nested = runs_of(client)

    assert {number: run.info.status for number, run in nested.items()} == {
        0: "FINISHED",
        1: "FINISHED",
        2: "FINISHED",
        3: "FAILED",
        4: "FINISHED",
        5: "FINISHED",
    }
    assert nested[3].data.tags["error"] == "DivergedError: the loss was nan after 12 steps"
    assert {number: run.data.tags["status"] for number, run in nested.items() if number > 2} == {
        3: "failed",
        4: "complete",
        5: "stopped",
    }
    assert nested[5].data.tags["stopped"] == "at step 0, accuracy 0.3000"
    assert [number for number in nested if nested[number].data.tags["on_front"] == "true"] == [4, 1, 0]
    assert {run.data.tags.get("limit_met") for run in nested.values()} == {"true", None}
    assert nested[1].data.metrics["size_bytes"] == 24_000
    assert nested[1].data.metrics["times_smaller"] == 17.5
    assert nested[1].data.metrics["test_accuracy"] == pytest.approx(0.971)
    assert "test_accuracy" not in nested[2].data.metrics
    history = client.get_metric_history(nested[1].info.run_id, "rung_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.875), (50, 0.955)]
    assert nested[1].data.params == policy_params(made_results()[1].policy, LAYERS)
    local = Path(client.download_artifacts(nested[1].info.run_id, "policy.json"))
    assert Policy.from_json(local.read_bytes()) == made_results()[1].policy
    assert nested[1].data.tags["cpu"] == "AMD EPYC (2 cores)"
    assert "torch 2.13.0" in nested[1].data.tags["versions"]

    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "mnist_vgg 2026-11-23"
    assert parent.data.params == {
        "sampler": "tpe",
        "trials": "6",
        "objectives": "size_bytes (min), latency_ms (min), accuracy (max)",
        "limits": "accuracy >= baseline - 0.05",
    }
    assert parent.data.metrics["baseline/size_bytes"] == 420_000
    assert parent.data.metrics["baseline/test_accuracy"] == 0.979
    assert parent.data.metrics["recommended/size_bytes"] == 24_000
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} == {
        "front.json",
        "front.csv",
        "front.html",
        "front.png",
    }
    inputs = parent.inputs.dataset_inputs if parent.inputs else []
    assert {entry.tags[0].value: entry.dataset.profile for entry in inputs} == {
        split: f'{{"num_rows": {count}}}' for split, count in DATASETS.items()
    }
    note = parent.data.tags["mlflow.note.content"]
    assert "**Recommended: trial 1**, 17.5x smaller, 3.6x faster, accuracy 97.5%." in note
    assert "| **1** | **17.5x smaller** | **3.6x faster** | **97.5%** | **97.1% (96.2% to 97.8%)** |" in note
    assert note.count("\n| ") == 2 + len(front.members)
    assert f"](get-artifact?path=front.png&run_uuid={parent.info.run_id})" in note


def found_by(client: MlflowClient, query: str) -> set[int]:
    """The trials that MLflow's search box shows for a query."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return {int(run.data.tags["autocompress.trial"]) for run in client.search_runs([experiment.experiment_id], query)}


def test_trials_are_found_by_their_tags(folder: RunFolder, uri: str) -> None:
    tracker = tracker_of(folder, uri, limits=(Limit.parse("accuracy >= 0.96"),))
    search(folder, tracker, made_results())
    front = made_front(folder.results(), (Limit.parse("accuracy >= 0.96"),))
    report(folder, front)
    assert tracker.close(front) == 0
    client = MlflowClient(tracking_uri=uri)
    assert found_by(client, "tags.on_front = 'true'") == {0, 1}
    assert found_by(client, "tags.status = 'failed'") == {3}
    assert found_by(client, "tags.status = 'stopped'") == {5}
    assert found_by(client, "tags.limit_met = 'true'") == {0, 1, 2}
    assert found_by(client, "tags.limit_met = 'false' and metrics.size_bytes < 10000") == {4}


def test_datasets_are_known_by_what_is_in_them(folder: RunFolder, uri: str) -> None:
    tracker = tracker_of(folder, uri, digests={"train": "0123456789ab"})
    tracker.start()
    assert tracker.close(None) == 0
    client = MlflowClient(tracking_uri=uri)
    run_id = MlflowRun.from_json(folder.mlflow_json.read_bytes()).parent_run_id
    assert run_id is not None
    parent = client.get_run(run_id)
    inputs = parent.inputs.dataset_inputs if parent.inputs else []
    digests = {entry.tags[0].value: entry.dataset.digest for entry in inputs}
    assert digests["train"] == "0123456789ab"
    assert len(digests["validation"]) == 8, "where it is not known, a digest of the size"


def test_a_stopped_trial_keeps_its_rungs_and_what_was_known_at_them(folder: RunFolder, uri: str) -> None:
    tracked(folder, uri, [made_results()[0], made_halted(5)])
    client = MlflowClient(tracking_uri=uri)
    _, nested = runs_of(client)
    halted = nested[5]
    assert (halted.info.status, halted.data.tags["status"]) == ("FINISHED", "stopped")
    assert halted.data.tags["stopped"] == "at step 50, accuracy 0.4100"
    assert "error" not in halted.data.tags
    assert halted.data.metrics == {
        "rung_accuracy": 0.41,
        "rung_seconds": 7.0,
        "rung_size_bytes": 42_000,
        "rung_latency_ms": 0.4,
        "worker_seconds": 7.0,
    }
    size = client.get_metric_history(halted.info.run_id, "rung_size_bytes")
    assert [(metric.step, metric.value) for metric in size] == [(0, 42_000)]
    assert halted.info.end_time - halted.info.start_time == 7000


def test_refits_compute_and_what_was_measured_before_are_there(tmp_path: Path, uri: str) -> None:
    folder, front, _ = made_run(tmp_path / "run")
    tracker = tracker_of(folder, uri)
    tracker.start()
    write_report(folder, front, folder.results(), LAYERS, title="x")
    assert tracker.close(front) == 0
    client = MlflowClient(tracking_uri=uri)
    parent, nested = runs_of(client)

    assert {number: run.data.tags.get("refit_of") for number, run in nested.items() if number > 4} == {
        5: None,
        6: "1",
        7: "1",
        8: "1",
    }
    assert nested[7].data.metrics["worker_seconds"] == 20.5
    compute = {key: value for key, value in parent.data.metrics.items() if key.startswith("worker_seconds")}
    assert compute == {
        "worker_seconds": 153.5,
        "worker_seconds/preparation": 10,
        "worker_seconds/trials": 82,
        "worker_seconds/refits": 61.5,
    }
    history = client.get_metric_history(parent.info.run_id, "hypervolume_by_worker_seconds")
    by_trial = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert sorted(metric.step for metric in history) == [30, 51, 72, 72, 92, 92, 112, 133, 154]
    assert {metric.value for metric in history} == {metric.value for metric in by_trial}

    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} == {
        *("front.json", "front.csv", "front.html", "front.md", "front.png", "search.png"),
        *("sensitivity.json", "sensitivity_table.json", "importance.json"),
    }
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "sensitivity_table.json")).read_text())
    assert table["columns"] == ["layer", "what", "value", "KL of the outputs, nats"]
    assert ["features.0", "weight_bits", 2, None] in table["data"]
    assert len(table["data"]) == len(made_sensitivity().entries)

    note = parent.data.tags["mlflow.note.content"]
    assert "**97.6 ± 0.3% (3 seeds)**" in note
    assert "(trained further from trial 1)** |" in note
    assert "± is one standard deviation over the seeds." in note
    assert "154 worker-seconds: 10 on preparation, 82 on trials, 62 on refits." in note
    before = everything(client)
    assert sync(folder, front, layers=LAYERS) == 0
    assert everything(client) == before


def test_a_report_that_is_written_before_the_end_knows_the_run_of_each_trial(tmp_path: Path, uri: str) -> None:
    folder, front, results = made_run(tmp_path / "run")
    tracker = tracker_of(folder, uri)
    tracker.start()
    tracker.settle()
    noted = MlflowRun.from_json(folder.mlflow_json.read_bytes())
    _, nested = runs_of(MlflowClient(tracking_uri=uri))
    assert noted.trials == {number: run.info.run_id for number, run in nested.items()}
    assert set(noted.trials) == {result.number for result in results}
    assert tracker.close(front) == 0
    assert MlflowRun.from_json(folder.mlflow_json.read_bytes()).trials == noted.trials


def test_a_run_that_was_noted_before_its_trials_were_can_be_read(folder: RunFolder, uri: str) -> None:
    tracked(folder, uri, made_results()[:1])
    old = json.loads(folder.mlflow_json.read_text())
    del old["trials"]
    folder.mlflow_json.write_text(json.dumps(old))
    assert MlflowRun.from_json(folder.mlflow_json.read_bytes()).trials == {}
    assert sync(folder, None, layers=LAYERS) == 0
    assert set(MlflowRun.from_json(folder.mlflow_json.read_bytes()).trials) == {0}


def test_damaged_sensitivities_cost_nothing_but_themselves(folder: RunFolder, uri: str) -> None:
    folder.sensitivity.write_text("{")
    tracked(folder, uri, made_results()[:2])
    client = MlflowClient(tracking_uri=uri)
    parent, nested = runs_of(client)
    assert sorted(nested) == [0, 1]
    assert parent.data.metrics["worker_seconds"] == 41
    assert "sensitivity_table.json" not in {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}


def test_the_hypervolume_over_trials_ends_at_the_fronts_and_never_falls(folder: RunFolder, uri: str) -> None:
    results = made_many(30)
    front = tracked(folder, uri, results)
    client = MlflowClient(tracking_uri=uri)
    parent, _ = runs_of(client)
    history = sorted(client.get_metric_history(parent.info.run_id, "hypervolume"), key=lambda metric: metric.step)
    values = [metric.value for metric in history]
    assert [metric.step for metric in history] == list(range(1, 31))
    assert values == sorted(values)
    assert values[-1] == pytest.approx(front.hypervolume())
    assert values[-1] > 0


def test_front_members_load_and_run_as_models_and_the_recommended_one_is_champion(folder: RunFolder, uri: str) -> None:
    tracked(folder, uri, made_results())
    client = MlflowClient(tracking_uri=uri)
    _, nested = runs_of(client)
    models = {model.name: model for model in client.search_logged_models([nested[0].info.experiment_id])}
    assert set(models) == {"trial-0000", "trial-0001", "trial-0004"}
    assert models["trial-0004"].source_run_id == nested[4].info.run_id
    assert {metric.key for metric in models["trial-0004"].metrics or []} >= {"size_bytes", "latency_ms", "accuracy"}
    with mlflow_at(uri):
        assert mlflow.onnx.load_model(models["trial-0004"].model_uri).graph.node[0].op_type == "MatMul"
        four = mlflow.pyfunc.load_model(models["trial-0004"].model_uri)
        champion = mlflow.pyfunc.load_model(f"models:/{EXPERIMENT}@champion")
    batch = np.ones((2, 4), dtype=np.float32)
    np.testing.assert_array_equal(four.predict(batch)["y"], np.full((2, 3), 16.0))
    np.testing.assert_array_equal(champion.predict(batch)["y"], np.full((2, 3), 4.0))
    version = client.get_model_version_by_alias(EXPERIMENT, "champion")
    assert version.run_id == nested[1].info.run_id


def test_the_tracking_uri_of_the_process_is_left_alone(folder: RunFolder, uri: str) -> None:
    before = mlflow.get_tracking_uri(), mlflow.active_run()
    tracked(folder, uri, made_results()[:2])
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == before


def test_a_sync_of_a_run_that_misses_nothing_changes_nothing(folder: RunFolder, uri: str) -> None:
    front = tracked(folder, uri, made_results())
    client = MlflowClient(tracking_uri=uri)
    before = everything(client)
    assert sync(folder, front, layers=LAYERS) == 0
    assert sync(folder, front, layers=LAYERS) == 0
    assert everything(client) == before


WRITES = {
    "create_experiment",
    "create_run",
    "update_run",
    "log_batch",
    "log_inputs",
    "log_metric",
    "log_text",
    "set_terminated",
    "set_tag",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "log_outputs",
    "create_registered_model",
    "create_model_version",
    "set_logged_model_tags",
    "set_registered_model_alias",
    "log_artifact",
}


class LostAnswers(MlflowClient):
    """A store that takes every write, but after `left` of them the answer is lost."""

    left = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in WRITES:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = found(*args, **kwargs)
            LostAnswers.left -= 1
            if LostAnswers.left < 0:
                raise MlflowException("the answer was lost")
            return answer

        return call


def test_what_broke_off_anywhere_is_completed_and_nothing_is_there_twice(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [made_results()[number] for number in (1, 3)]
    front = made_front(results)
    client = MlflowClient(tracking_uri=uri)

    def unsynced(name: str) -> RunFolder:
        folder = made_folder(tmp_path / name, results)
        report(folder, front)
        run = tracker_of(folder, uri, experiment_name=name)._run
        folder.mlflow_json.write_text(run.to_json())
        return folder

    assert sync(unsynced("whole"), front, layers=LAYERS) == 2
    whole = everything(client, "whole")
    broken = 0
    for left in range(200):
        name = f"after {left} writes"
        folder = unsynced(name)
        with monkeypatch.context() as patch:
            patch.setattr(mlflow_store, "MlflowClient", LostAnswers)
            LostAnswers.left = left
            try:
                sync(folder, front, layers=LAYERS)
            except UnreachableError as error:
                assert "the answer was lost" in str(error)  # noqa: PT017  # some of the loop's searches end whole
                broken += 1
            else:
                break
        sync(folder, front, layers=LAYERS)
        assert everything(client, name) == whole, name
    assert broken > 25


def test_a_twin_that_a_repeated_request_left_behind_goes(folder: RunFolder, uri: str) -> None:
    front = tracked(folder, uri, made_results())
    client = MlflowClient(tracking_uri=uri)
    parent, nested = runs_of(client)
    before = everything(client)
    twin = {"mlflow.parentRunId": parent.info.run_id, "autocompress.trial": "1", "on_front": "false"}
    client.create_run(nested[1].info.experiment_id, tags=twin)
    assert sync(folder, front, layers=LAYERS) == 0
    assert everything(client) == before


def test_a_run_of_the_users_own_below_the_search_is_left_alone(folder: RunFolder, uri: str) -> None:
    front = tracked(folder, uri, made_results())
    client = MlflowClient(tracking_uri=uri)
    parent, nested = runs_of(client)
    theirs = client.create_run(nested[1].info.experiment_id, tags={"mlflow.parentRunId": parent.info.run_id, "trial": "1"})
    assert sync(folder, front, layers=LAYERS) == 0
    assert client.get_run(theirs.info.run_id).info.lifecycle_stage == "active"
    assert client.get_run(nested[1].info.run_id).info.lifecycle_stage == "active"


def test_a_resumed_search_goes_on_in_the_same_parent_and_the_front_moves(folder: RunFolder, uri: str) -> None:
    tracked(folder, uri, made_results())
    client = MlflowClient(tracking_uri=uri)
    first, _ = runs_of(client)
    better = made_result(6, 8_000, 0.14, 0.9815, model="trials/0006/model.onnx")
    tracker = tracker_of(folder, None, settings={"sampler": "tpe", "trials": "7"})
    search(folder, tracker, [better])
    front = made_front(folder.results())
    assert tracker.close(front) == 0
    parent, nested = runs_of(client)
    assert parent.info.run_id == first.info.run_id
    assert parent.info.status == "FINISHED"
    assert sorted(nested) == [0, 1, 2, 3, 4, 5, 6]
    assert [number for number in nested if nested[number].data.tags["on_front"] == "true"] == [6]
    assert client.get_model_version_by_alias(EXPERIMENT, "champion").run_id == nested[6].info.run_id
    history = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4, 5, 6, 7]
    assert parent.data.params["trials"] == "6"
    assert parent.data.tags["trials"] == "7"
    # Sizes fell: of one time MLflow would take the largest for the latest.
    assert parent.data.metrics["front_size"] == 1.0
    assert parent.data.metrics["recommended/size_bytes"] == 8_000
    assert parent.data.tags["recommended"] == "6"


def test_an_ended_run_is_running_again_while_it_is_resumed(folder: RunFolder, uri: str) -> None:
    tracked(folder, uri, made_results()[:2])
    run = MlflowRun.from_json(folder.mlflow_json.read_bytes())
    mlflow_store.open_store(uri, run, LAYERS)
    parent, _ = runs_of(MlflowClient(tracking_uri=uri))
    assert parent.info.status == "RUNNING"


def test_a_run_that_ends_without_a_front_is_killed(folder: RunFolder, uri: str) -> None:
    tracker = tracker_of(folder, uri)
    search(folder, tracker, made_results()[:1])
    assert tracker.close(None) == 0
    parent, nested = runs_of(MlflowClient(tracking_uri=uri))
    assert parent.info.status == "KILLED"
    assert nested[0].info.status == "FINISHED"


def test_when_no_trial_meets_the_limits_the_parent_says_so(folder: RunFolder, uri: str) -> None:
    limits = (Limit.parse("accuracy >= baseline + 0.01"),)
    tracker = tracker_of(folder, uri, limits=limits)
    search(folder, tracker, made_results())
    front = made_front(made_results(), limits)
    assert tracker.close(front) == 0
    parent, nested = runs_of(MlflowClient(tracking_uri=uri))
    assert "**No trial meets `accuracy >= baseline + 0.01`.** The nearest:" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["recommended"] == "none"
    assert nested[0].data.tags["limit_met"] == "false"
    assert parent.data.metrics["front_size"] == 0


def test_a_member_whose_file_is_gone_costs_only_its_model(
    folder: RunFolder, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracker_of(folder, uri)
    search(folder, tracker, made_results())
    (folder.path / "trials/0004/model.onnx").unlink()
    with caplog.at_level(logging.WARNING):
        assert tracker.close(made_front(made_results())) == 0
    client = MlflowClient(tracking_uri=uri)
    _, nested = runs_of(client)
    models = client.search_logged_models([nested[0].info.experiment_id])
    assert {model.name for model in models} == {"trial-0000", "trial-0001"}
    assert "cannot read a file of trial 4: " in caplog.text


def test_a_deleted_experiment_is_restored(folder: RunFolder, uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment(EXPERIMENT))
    tracked(folder, uri, made_results()[:2])
    assert len(runs_of(client)[1]) == 2


def test_a_store_that_is_away_costs_the_search_nothing_and_sync_writes_it_elsewhere(
    folder: RunFolder, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    away = f"http://me:secret@127.0.0.1:{free_port()}"
    tracker = tracker_of(folder, away)
    record = JsonlRecord(folder)
    tracker.start()
    slowest = 0.0
    for result in made_results():
        record.finished(result)
        begun = time.monotonic()
        tracker.finished(result)
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 0.1
    front = made_front(made_results())
    made_folder(folder.path, made_results())
    begun = time.monotonic()
    assert tracker.close(front) == 6
    assert time.monotonic() - begun < 60
    assert tracker.message is not None
    assert tracker.message.startswith("6 trials are missing in MLflow at http://127.0.0.1:")
    assert "Connection refused" in tracker.message
    assert tracker.message.endswith(f"`autocompress sync {folder.path}`")
    shown = tracker.message + tracker.ui_hint + caplog.text
    assert "secret" not in shown + folder.mlflow_json.read_text()

    with pytest.raises(UnreachableError, match=r"cannot use MLflow at http://127\.0\.0\.1:\d+ \(.*Connection refused\)"):
        sync(folder, front, layers=LAYERS)
    assert sync(folder, front, layers=LAYERS, uri=uri) == 6
    assert sync(folder, front, layers=LAYERS) == 0, "from now on it is logged there"
    assert len(runs_of(MlflowClient(tracking_uri=uri))[1]) == 6


def wait_for_runs(client: MlflowClient, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = client.search_runs([experiment.experiment_id], "attributes.status != 'RUNNING'") if experiment else []
        if len(runs) >= count:
            return
        time.sleep(0.2)
    raise AssertionError(f"not {count} runs after a minute")


def test_a_real_server_that_dies_in_the_middle_and_comes_back(folder: RunFolder, tmp_path: Path, empty_store: Path) -> None:
    home = tmp_path / "server"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = ["server", "--backend-store-uri", default_uri(home), "--artifacts-destination", str(home / "art")]
    results = made_results()
    with mlflow_serving(command, home, port) as process:
        check_reachable(uri)
        tracker = tracker_of(folder, uri)
        search(folder, tracker, results[:2])
        wait_for_runs(MlflowClient(tracking_uri=uri), 2)
        kill(process)
        made_folder(folder.path, results)
        for result in results[2:]:
            tracker.finished(result)
        front = made_front(results)
        report(folder, front)
        assert tracker.close(front) == 4
        assert tracker.message is not None
        assert tracker.message.startswith("4 trials are missing")

    with mlflow_serving(command, home, port):
        assert sync(folder, front, layers=LAYERS) == 4
        client = MlflowClient(tracking_uri=uri)
        before = everything(client)
        assert sync(folder, front, layers=LAYERS) == 0
        assert everything(client) == before
        assert before["parent"]["status"] == "FINISHED"
        assert before["parent"]["artifacts"] == ["front.csv", "front.html", "front.json", "front.png"]
        assert [before[f"trial {number}"]["status"] for number in (3, 5)] == ["FAILED", "FINISHED"]
        parent, _ = runs_of(client)
        assert tracker.ui_hint == f"{uri}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
        with mlflow_at(uri):
            champion = mlflow.pyfunc.load_model(f"models:/{EXPERIMENT}@champion")
        np.testing.assert_array_equal(champion.predict(np.ones((1, 4), dtype=np.float32))["y"], np.full((1, 3), 4.0))


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("http://127.0.0.1:9", r"cannot use MLflow at http://127\.0\.0\.1:9 \(.*Connection refused"),
        ("http://me:secret@127.0.0.1:9", r"cannot use MLflow at http://127\.0\.0\.1:9 \("),
        ("htp://localhost:5000", r"no scheme 'htp'; did you mean 'http'\?"),
        ("http://", "names no host"),
        ("http://[oops", "is malformed: Invalid IPv6 URL"),
        ("http://localhost:port", "is malformed: Port could not be cast"),
        ("mlruns", "no longer keeps runs in plain folders; use sqlite:///PATH/mlflow.db"),
        ("file:///data/mlruns", "no longer keeps runs in plain folders"),
        ("sqlite://", "names no file"),
        ("sqlite:////no/such/folder/mlflow.db", "cannot write the MLflow database .*: there is no folder /no/such/folder"),
        ("sqlite:///{tmp_path}/text.db", "cannot write the MLflow database .*: file is not a database"),
        ("sqlite:///{tmp_path}", "cannot write the MLflow database .*: unable to open database file"),
    ],
)
def test_a_store_that_cannot_be_used_is_an_error_in_one_line(uri: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to be read as one " * 20)
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=complaint) as caught:
        check_reachable(uri.format(tmp_path=tmp_path))
    assert time.monotonic() - begun < 15
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_takes_the_call_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.trackers.mlflow._ANSWER_SECONDS", 2.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UnreachableError, match="no answer in 2 seconds"):
            check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_database_that_can_be_made_is_reachable_and_not_made_yet(tmp_path: Path) -> None:
    check_reachable(default_uri(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_never_to_be_logged_cannot_be_synced(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=r"has no mlflow\.json.*give --tracking-uri"):
        sync(folder, None, layers=LAYERS)
    with pytest.raises(RunFolderError, match=r"has no mlflow\.json"):
        tracker_of(folder, None)


def test_relative_stores_are_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db" == default_uri(tmp_path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/path", "http://host:5000/path"),
        ("postgresql+psycopg2://me:s3@cret@host/db?sslmode=require", "postgresql+psycopg2://host/db?sslmode=require"),
        ("postgresql://host/db?password=secret&sslmode=require", "postgresql://host/db?sslmode=require"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown
    assert one_line(ValueError(f"cannot reach {uri} now")) == f"cannot reach {shown} now"


def test_the_few_params_of_a_policy() -> None:
    policy = Policy(
        channel_sparsity={"features.0": 0.5},
        layers={
            "features.3": LayerPolicy(weight_bits=4, activation_bits=8),
            "classifier": LayerPolicy(weight_bits=8, weight_sparsity=0.5),
        },
        finetune=Finetune(steps=300, learning_rate=2.5e-4),
        distill=Distill(temperature=3),
    )
    bits = (640 * 32 + 36_928 * 4 + 9_010 * 8) / 46_578
    assert policy_params(policy, LAYERS) == {
        "mean_weight_bits": f"{bits:.3g}",
        "mean_activation_bits": "24",
        "channel_sparsity": "0.25",
        "weight_sparsity": f"{9_010 * 0.5 / 46_578:.3g}",
        "steps": "300",
        "learning_rate": "0.00025",
        "temperature": "3",
    }
