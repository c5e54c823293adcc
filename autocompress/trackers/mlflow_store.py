"""What is written to MLflow. Each piece may be written again after it broke off anywhere, and nothing is there twice.

One parent run a search, found by its key; one nested run a trial, found by the trial's number. A nested run counts as
written when it is no longer RUNNING, which is the last thing that is set. All time stamps come from the trial, not from
the clock: MLflow drops a metric that it already has with the same step and time.
"""

import hashlib
import json
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.utils import mlflow_tags

from autocompress.errors import InputError
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.result import Status, TrialResult
from autocompress.runtimes.onnx_file import check_alone
from autocompress.trackers.growth import Growth, Point, compute_of, ended, preparation_of
from autocompress.trackers.mlflow_note import note
from autocompress.trackers.mlflow_run import MlflowRun, sqlite_file
from autocompress.trackers.mlflow_tables import evidence_files, log_sensitivity
from autocompress.trackers.mlflow_trial import final_metrics, policy_params, rung_metrics, safe, trial_tags
from autocompress.trial_files import read_trial_file

CHAMPION = "champion"

_log = logging.getLogger(__name__)
_KEY, _TRIAL, _ON_FRONT = "autocompress.run", "autocompress.trial", "on_front"
_STATUS = {
    Status.COMPLETE: RunStatus.to_string(RunStatus.FINISHED),
    Status.STOPPED: RunStatus.to_string(RunStatus.FINISHED),  # as planned; the tag status tells it apart
    Status.FAILED: RunStatus.to_string(RunStatus.FAILED),
}
_RUNNING = RunStatus.to_string(RunStatus.RUNNING)
_FINISHED = RunStatus.to_string(RunStatus.FINISHED)
_KILLED = RunStatus.to_string(RunStatus.KILLED)
# MLflow's own limits: characters of a tag (older servers take 5000), metrics of one request.
_TAG_LENGTH = 5000
_METRICS_AT_ONCE = 1000
_BY_COMPUTE = "hypervolume_by_worker_seconds"


@dataclass
class Child:
    """The nested run of a trial: `written` when nothing of it is missing."""

    run_id: str
    written: bool
    on_front: bool


@dataclass(frozen=True)
class Store:
    """An open MLflow store with the parent run in it, and the nested runs that are known."""

    client: MlflowClient
    run: MlflowRun
    experiment_id: str
    parent_run_id: str
    layers: Layers
    children: dict[int, Child] = field(default_factory=dict)

    @property
    def written(self) -> set[int]:
        """The trials of which nothing is missing."""
        return {number for number, child in self.children.items() if child.written}

    def log_trial(self, result: TrialResult) -> None:
        """Writes the nested run of one trial, or completes it."""
        child = self.children.get(result.number)
        if child is None:
            tags = {mlflow_tags.MLFLOW_PARENT_RUN_ID: self.parent_run_id, _TRIAL: str(result.number), _ON_FRONT: "false"}
            name = f"trial {result.number:04d}"
            created = self.client.create_run(self.experiment_id, int(result.started * 1000), tags, name)
            child = self.children[result.number] = Child(created.info.run_id, written=False, on_front=False)
        self.client.log_batch(
            child.run_id,
            metrics=[*rung_metrics(result), *final_metrics(result, self.run.baseline)],
            params=[Param(key, value) for key, value in policy_params(result.policy, self.layers).items()],
            tags=[RunTag(key, value[:_TAG_LENGTH]) for key, value in trial_tags(result, self.run).items()],
        )
        self.client.log_text(child.run_id, result.policy.to_json(indent=2), "policy.json")
        self.client.set_terminated(child.run_id, _STATUS[result.status], ended(result))
        child.written = True

    def log_growth(self, *points: Point) -> None:
        """Adds how far the search was: the hypervolume by the number of trials, and by the worker-seconds they took."""
        for start in range(0, len(points), _METRICS_AT_ONCE // 2):
            some = points[start : start + _METRICS_AT_ONCE // 2]
            metrics = [Metric("hypervolume", point.hypervolume, point.ended, point.count) for point in some]
            # A step is an integer, so that MLflow can draw the same against compute.
            metrics += [Metric(_BY_COMPUTE, point.hypervolume, point.ended, round(point.seconds)) for point in some]
            self.client.log_batch(self.parent_run_id, metrics=metrics)

    def log_all(self, results: Sequence[TrialResult], preparation: float) -> int:
        """Writes the trials, and the steps of the hypervolume, that are missing. Says how many trials that were.

        `preparation` is how many worker-seconds were spent before the first trial.
        """
        written = self.written
        absent = [result for result in results if result.number not in written]
        for result in absent:
            self.log_trial(result)
        growth = Growth(self.run, preparation)
        points = [growth.add(result) for result in results]
        there = {metric.step for metric in self.client.get_metric_history(self.parent_run_id, "hypervolume")}
        self.log_growth(*(point for point in points if point.count not in there))
        return len(absent)

    def finish(self, folder: RunFolder, front: ParetoFront | None) -> None:
        """Marks the front, logs its models, registers the recommended one, fills in the parent run and ends it.

        A run that ended without a front is KILLED.
        """
        if front is not None:
            _mark_front(self, folder, front)
            _finish_parent(self, folder, front)
        self.client.set_terminated(self.parent_run_id, _KILLED if front is None else _FINISHED)


def open_store(uri: str, run: MlflowRun, layers: Layers, *, ended: bool = False) -> Store:
    """Finds, or makes, the experiment and the parent run, and sets it RUNNING; one that has `ended` stays as it is.

    Raises what MLflow raises.
    """
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment_id = _experiment(client, uri, run.experiment_name)
    parent = _parent(client, experiment_id, run, ended=ended)
    _describe_parent(client, parent, run)
    parent_id = parent.info.run_id
    return Store(client, run, experiment_id, parent_id, layers, _children(client, experiment_id, parent_id))


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_file(uri)
        # A server keeps artifacts where it was told to; beside a database file they would land in the working folder.
        location = (database.parent / "mlartifacts").as_uri() if database else None
        return str(client.create_experiment(name, location, {"mlflow.experimentKind": "custom_model_development"}))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)  # the name stays taken, so there is no other place to log to
    return str(found.experiment_id)


def _parent(client: MlflowClient, experiment_id: str, run: MlflowRun, *, ended: bool) -> Run:
    found = client.search_runs([experiment_id], f"tags.`{_KEY}` = '{run.key}'", max_results=1)
    if found and ended:
        return found[0]
    if found:
        client.update_run(found[0].info.run_id, _RUNNING)
        return found[0]
    tags = {_KEY: run.key, mlflow_tags.MLFLOW_SOURCE_NAME: "autocompress", mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL"}
    return client.create_run(experiment_id, tags=tags, run_name=run.title)


def _describe_parent(client: MlflowClient, parent: Run, run: MlflowRun) -> None:
    """What is known before the first trial. A setting that has changed since (a resume may raise the budget) is a tag."""
    known = parent.data.params
    wanted = {safe(key): value for key, value in run.settings.items()}
    wanted |= {"objectives": ", ".join(f"{o.metric} ({o.goal})" for o in run.objectives)}
    wanted |= {"limits": ", ".join(limit.text for limit in run.limits) or "none"}
    changed = {key: value for key, value in wanted.items() if known.get(key, value) != value}
    if run.baseline_of is not None:
        changed["baseline_of"] = run.baseline_of
    metrics = {f"baseline/{safe(name)}": value for name, value in run.baseline.items()}
    client.log_batch(
        parent.info.run_id,
        metrics=[Metric(key, value, parent.info.start_time, 0) for key, value in metrics.items() if math.isfinite(value)],
        params=[Param(key, value) for key, value in wanted.items() if key not in known],
        tags=[RunTag(key, value) for key, value in changed.items()],
    )
    if run.datasets and not (parent.inputs and parent.inputs.dataset_inputs):
        client.log_inputs(parent.info.run_id, [_dataset(run, split, examples) for split, examples in run.datasets.items()])


def _dataset(run: MlflowRun, split: str, examples: int) -> DatasetInput:
    experiment = run.experiment_name
    digest = run.digests.get(split) or hashlib.sha256(f"{experiment} {split} {examples}".encode()).hexdigest()[:8]
    profile = json.dumps({"num_rows": examples})
    source = json.dumps({"task": experiment})
    dataset = Dataset(f"{experiment} {split}", digest, source_type="code", source=source, profile=profile)
    return DatasetInput(dataset, [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, split)])


def _children(client: MlflowClient, experiment_id: str, parent_id: str) -> dict[int, Child]:
    """The nested runs by trial number. A create request that was answered too late to be seen may have left a twin: it goes."""
    children: dict[int, Child] = {}
    token = None
    while True:
        query = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{parent_id}'"
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
        for run in page:
            tags, written = run.data.tags, run.info.status != _RUNNING
            if _TRIAL not in tags:
                continue  # the user's own, below our parent
            child = Child(run.info.run_id, written, tags.get(_ON_FRONT) == "true")
            twin = children.get(int(tags[_TRIAL]))
            if twin is not None:
                loser, child = (child, twin) if twin.written else (twin, child)
                client.delete_run(loser.run_id)
            children[int(tags[_TRIAL])] = child
        token = page.token
        if not token:
            return children


def promote_model(store: Store, folder: RunFolder, result: TrialResult, alias: str) -> tuple[str, int, int | None]:
    """Registers the model of a trial, unless it is, and gives it the alias.

    Returns the name it is registered under, its version, and the version that had the alias before, None when none had.
    Raises `InputError` when there is no model that MLflow could load, or its file is gone or damaged, and what MLflow raises.
    """
    name = Path(result.model or "").name
    read_trial_file(folder, result, name)  # what may have been logged before, too, is not what is here
    model_id = _log_model(store, folder, result, store.children[result.number].run_id)
    if model_id is None:
        raise InputError(f"MLflow cannot load {name} as a model, so trial {result.number} cannot be registered")
    name, version = _registered(store, result, model_id)
    aliases = {known: int(number) for known, number in store.client.get_registered_model(name).aliases.items()}
    if aliases.get(alias) != version:
        store.client.set_registered_model_alias(name, alias, str(version))
    return name, version, aliases.get(alias)


def _mark_front(store: Store, folder: RunFolder, front: ParetoFront) -> None:
    numbers = {member.number for member in front.members}
    for number, child in store.children.items():
        if child.on_front and number not in numbers:
            store.client.set_tag(child.run_id, _ON_FRONT, "false")
            child.on_front = False
    chosen = front.recommended()
    for member in front.members:
        child = store.children[member.number]
        store.client.log_batch(child.run_id, metrics=list(_test_metrics(front, member)))
        model_id = _log_model(store, folder, member, child.run_id)
        if not child.on_front:
            store.client.set_tag(child.run_id, _ON_FRONT, "true")
            child.on_front = True
        if chosen is not None and member.number == chosen.number and model_id and store.run.baseline_of is None:
            _crown(store, member, model_id)


def _test_metrics(front: ParetoFront, member: TrialResult) -> Iterator[Metric]:
    score = front.test.get(member.number)
    if score is not None:
        for name, value in (("", score.accuracy), ("_low", score.low), ("_high", score.high)):
            yield Metric(f"test_accuracy{name}", value, ended(member), 0)


def _log_model(store: Store, folder: RunFolder, member: TrialResult, run_id: str) -> str | None:
    """The id of the member's logged model; None when its exported file is gone or damaged."""
    client = store.client
    model_id = None
    for found in client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'"):
        if found.status == LoggedModelStatus.READY:
            model_id = str(found.model_id)
        else:
            client.delete_logged_model(found.model_id)
    if model_id is None:
        name = Path(member.model or "").name
        try:
            content = read_trial_file(folder, member, name)
        except InputError as error:
            _log.warning("%s; its model is not logged", error)
            return None
        if not name.endswith(".onnx"):  # MLflow has no flavour that loads it without autocompress
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch, name)
                file.write_bytes(content)
                client.log_artifact(run_id, str(file), "model")
            return None
        model_id = _upload_model(store, content, member, run_id)
    outputs = client.get_run(run_id).outputs
    if outputs is None or model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id


def _upload_model(store: Store, content: bytes, member: TrialResult, run_id: str) -> str:
    """What `mlflow.onnx.log_model` does, which would need the tracking URI of the whole process."""
    client = store.client
    name, params = f"trial-{member.number:04d}", policy_params(member.policy, store.layers)
    model = client.create_logged_model(store.experiment_id, name, run_id, {_TRIAL: str(member.number)}, params, "onnx")
    model_id = str(model.model_id)
    check_alone(content)
    exported = onnx.load_model_from_string(content)
    on_gpu = member.environment is not None and member.environment.gpu is not None
    with tempfile.TemporaryDirectory() as scratch:
        mlflow.onnx.save_model(
            exported,
            f"{scratch}/model",
            mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_uuid=model_id, model_id=model_id),
            signature=_signature(exported),
            pip_requirements=[f"{package}=={version(package)}" for package in ("onnx", "onnxruntime", "numpy")],
            onnx_execution_providers=[*(["CUDAExecutionProvider"] if on_gpu else []), "CPUExecutionProvider"],
            save_as_external_data=False,
        )
        client.log_model_artifacts(model_id, f"{scratch}/model")
    metrics = final_metrics(member, store.run.baseline)
    linked = [Metric(m.key, m.value, m.timestamp, m.step, model_id, run_id=run_id) for m in metrics]
    client.log_batch(run_id, metrics=linked)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def _signature(exported: onnx.ModelProto) -> ModelSignature:
    """What goes in and comes out. A single tensor goes without its name, so that a plain array will do."""
    weights = {weight.name for weight in exported.graph.initializer}
    inputs = [value for value in exported.graph.input if value.name not in weights]
    return ModelSignature(Schema(_tensors(inputs)), Schema(_tensors(exported.graph.output)))


def _tensors(values: Sequence[onnx.ValueInfoProto]) -> list[ColSpec | TensorSpec]:
    specs: list[ColSpec | TensorSpec] = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = tuple(size.dim_value or -1 for size in tensor.shape.dim)
        specs.append(TensorSpec(dtype, shape, value.name if len(values) > 1 else None))
    return specs


def _crown(store: Store, member: TrialResult, model_id: str) -> None:
    """Registers the model under the experiment's name, once, and gives it the alias `champion`."""
    name, version = _registered(store, member, model_id)
    store.client.set_registered_model_alias(name, CHAMPION, str(version))


def _registered(store: Store, member: TrialResult, model_id: str) -> tuple[str, int]:
    """The name and the version under which the model is registered; it is registered once."""
    client = store.client
    name = re.sub(r"[/:'\"]", "-", store.run.experiment_name)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Compressed models, registered by autocompress.")
    model = client.get_logged_model(model_id)
    versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.source == model.artifact_location]
    made = versions[0] if versions else _register(client, name, model, member)
    shown = json.dumps([{"name": name, "version": made.version}])
    client.set_logged_model_tags(model_id, {mlflow_tags.MLFLOW_MODEL_VERSIONS: shown})
    return name, int(made.version)


def _register(client: MlflowClient, name: str, model: LoggedModel, member: TrialResult) -> ModelVersion:
    tags = {_TRIAL: str(member.number)}
    source, run_id = model.artifact_location, model.source_run_id
    return client.create_model_version(name, source, run_id, tags, description=member.summary, model_id=model.model_id)


def _finish_parent(store: Store, folder: RunFolder, front: ParetoFront) -> None:
    client, parent = store.client, store.parent_run_id
    results = folder.results()
    # MLflow takes the largest of the figures of one time for the latest.
    now = max(map(ended, results), default=client.get_run(parent).info.start_time)
    compute = compute_of(results, preparation_of(folder))
    figures = {"front_size": float(len(front.members)), "worker_seconds": sum(compute.values())}
    figures |= {f"worker_seconds/{what}": seconds for what, seconds in compute.items()}
    if front.baseline_test is not None:
        figures["baseline/test_accuracy"] = front.baseline_test.accuracy
    metrics = [Metric(key, value, now, 0) for key, value in figures.items()]
    chosen = front.recommended()
    if chosen is not None:
        reached = [*final_metrics(chosen, store.run.baseline), *_test_metrics(front, chosen)]
        metrics += [Metric(f"recommended/{m.key}", m.value, now, 0) for m in reached if "seconds" not in m.key]
    tags = {
        mlflow_tags.MLFLOW_RUN_NOTE: note(front, compute, picture=_picture(folder, parent))[:_TAG_LENGTH],
        "recommended": "none" if chosen is None else str(chosen.number),
    }
    client.log_batch(parent, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
    for file in evidence_files(folder):
        client.log_artifact(parent, str(file))
    log_sensitivity(client, parent, folder)


def _picture(folder: RunFolder, run_id: str) -> str | None:
    """The address of the picture of the front, as a page of the same server finds it."""
    file = folder.front_json.with_suffix(".png")
    return f"get-artifact?path={file.name}&run_uuid={run_id}" if file.exists() else None
