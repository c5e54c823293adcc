"""What MLflow is told of one trial: parameters, tags and metrics of its nested run."""

import math
import re
from collections.abc import Iterator

from mlflow.entities import Metric
from mlflow.utils import mlflow_tags

from autocompress.front import missed
from autocompress.layer import Layers
from autocompress.objective import base_of
from autocompress.policy import LayerPolicy, Policy
from autocompress.result import Status, TrialResult
from autocompress.trackers.growth import ended
from autocompress.trackers.mlflow_run import MlflowRun


def policy_params(policy: Policy, layers: Layers) -> dict[str, str]:
    """A policy in a few figures that can be compared over all trials.

    Mean bits are weighted by parameters (weights) or plain (activations), float counting as 32; sparsities are shares of
    all prunable channels and of all weights.
    """
    settings = [(layer, policy.layers.get(layer.name, LayerPolicy())) for layer in layers]
    params = sum(layer.params for layer in layers) or 1
    channels = sum(group.channels for group in layers.groups) or 1
    cut = sum(layers.group(name).channels * share for name, share in policy.channel_sparsity.items())
    weight_bits = sum(layer.params * (setting.weight_bits or 32) for layer, setting in settings) / params
    activation_bits = sum(setting.activation_bits or 32 for _, setting in settings) / (len(settings) or 1)
    zeros = sum(layer.params * setting.weight_sparsity for layer, setting in settings) / params
    return {
        "mean_weight_bits": f"{weight_bits:.3g}",
        "mean_activation_bits": f"{activation_bits:.3g}",
        "channel_sparsity": f"{cut / channels:.3g}",
        "weight_sparsity": f"{zeros:.3g}",
        "steps": str(policy.finetune.steps),
        "learning_rate": f"{policy.finetune.learning_rate:.3g}",
        "temperature": f"{policy.distill.temperature:.3g}" if policy.distill else "none",
    }


def trial_tags(result: TrialResult, run: MlflowRun) -> dict[str, str]:
    """Its status, where and how it ran, and why it ended early; `run` has the limits it is judged by."""
    tags = {
        "status": str(result.status),
        "policy": result.policy.key(),
        "seed": str(result.seed),
        mlflow_tags.MLFLOW_RUN_NOTE: result.summary or result.error or "",
    }
    if result.error:
        tags["error"] = result.error
        tags[mlflow_tags.MLFLOW_RUN_NOTE] = f"{result.summary}\n\n{result.error}".strip()
    if result.refit_of is not None:
        tags["refit_of"] = str(result.refit_of)
    if result.status is Status.STOPPED and result.rungs:
        last = result.rungs[-1]
        tags["stopped"] = f"at step {last.step}, {run.scoring.words(last.accuracy)}"
    if result.status is Status.COMPLETE:
        tags["limit_met"] = str(not missed(result.metrics, run.limits, run.baseline)).lower()
    if result.environment:
        machine = result.environment
        tags["cpu"] = f"{machine.cpu} ({machine.cores} cores)"
        tags["gpu"] = machine.gpu or "none"
        tags["python"] = machine.python
        tags["versions"] = ", ".join(f"{name} {number}" for name, number in sorted(machine.versions.items()))
    return tags


def rung_metrics(result: TrialResult) -> Iterator[Metric]:
    """`rung_accuracy` and whatever else was known at a rung, at the steps of the rungs."""
    for rung in result.rungs:
        values = {"accuracy": rung.accuracy, "seconds": rung.seconds, **rung.metrics}
        yield from _finite({f"rung_{safe(name)}": value for name, value in values.items()}, result, rung.step)


def final_metrics(result: TrialResult, baseline: dict[str, float]) -> Iterator[Metric]:
    """What was measured on the exported file, set beside `baseline`, and the time it took; for an early end only the time."""
    values = {safe(name): value for name, value in result.metrics.items()}
    if size := result.metrics.get("size_bytes"):
        values["times_smaller"] = baseline["size_bytes"] / size
    for name, value in result.metrics.items():
        if base_of(name) == "latency_ratio" and value:
            values[safe(name.replace("latency_ratio", "times_faster"))] = 1 / value
    values |= {f"seconds/{safe(stage)}": seconds for stage, seconds in result.seconds.items()}
    yield from _finite(values | {"worker_seconds": result.compute}, result, 0)


def safe(key: str) -> str:
    """A name that MLflow takes as a key."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _finite(values: dict[str, float], result: TrialResult, step: int) -> Iterator[Metric]:
    yield from (Metric(key, value, ended(result), step) for key, value in values.items() if math.isfinite(value))
