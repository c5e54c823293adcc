"""A run made by hand: layers, results, a front and a run folder, for tests that need no training."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront, TestScore
from autocompress.layer import Group, Layer, Layers
from autocompress.objective import Limit, Objective
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.result import Environment, Rung, Status, TrialResult

BASELINE = {
    "size_bytes": 420_000.0,
    "download_bytes": 389_000.0,
    "latency_ms": 0.8,
    "latency_ratio": 1.0,
    "accuracy": 0.982,
    "macs": 9.6e6,
    "params": 105_000.0,
}
LAYERS = Layers(
    layers=(
        Layer(name="features.0", kind="conv2d", weight_shape=(64, 1, 3, 3), params=640, macs=451_584, group="features.0"),
        Layer(name="features.3", kind="conv2d", weight_shape=(64, 64, 3, 3), params=36_928, macs=7_225_344, group="features.3"),
        Layer(name="classifier", kind="linear", weight_shape=(10, 900), params=9_010, macs=9_000),
    ),
    groups=(
        Group(name="features.0", channels=64, writers=("features.0",), readers={"features.3": 1}),
        Group(name="features.3", channels=64, writers=("features.3",), readers={"classifier": 9}),
    ),
)
OBJECTIVES = tuple(Objective.of(name) for name in ("size_bytes", "latency_ms", "accuracy"))
LIMITS = (Limit.parse("accuracy >= baseline - 0.05"),)
ENVIRONMENT = Environment(cpu="AMD EPYC", cores=2, python="3.11.7", versions={"torch": "2.13.0", "onnxruntime": "1.32.0"})


def made_result(
    number: int, size: float, latency: float, accuracy: float, *, bits: int = 4, share: float = 0.5, model: str | None = None
) -> TrialResult:
    """A complete trial of `size` bytes, `latency` ms and `accuracy`."""
    policy = Policy(
        channel_sparsity={"features.0": share, "features.3": share},
        layers={layer.name: LayerPolicy(weight_bits=bits, activation_bits=8) for layer in LAYERS},
        finetune=Finetune(steps=100 + number),
        distill=Distill() if number % 2 else None,
    )
    return TrialResult(
        number=number,
        policy=policy,
        status=Status.COMPLETE,
        metrics={
            "size_bytes": size,
            "download_bytes": size * 0.9,
            "latency_ms": latency,
            "latency_ratio": latency / BASELINE["latency_ms"],
            "latency_measured_ms": latency * 1.01,
            "accuracy": accuracy,
            "macs": 1e6,
            "params": size * 2,
        },
        rungs=(Rung(step=0, accuracy=accuracy - 0.1), Rung(step=50, accuracy=accuracy - 0.02)),
        seed=number,
        started=1_790_000_000.0 + 30 * number,
        seconds={"compress": 0.5, "finetune": 20.0},
        environment=ENVIRONMENT,
        model=model,
        summary=policy.describe(LAYERS),
    )


def made_failure(number: int, error: str) -> TrialResult:
    return TrialResult(
        number=number, policy=Policy(), status=Status.FAILED, error=error, seed=number, started=1_790_000_000.0 + 30 * number
    )


def made_stop(number: int) -> TrialResult:
    return TrialResult(
        number=number,
        policy=Policy(),
        status=Status.STOPPED,
        rungs=(Rung(step=0, accuracy=0.3),),
        seed=number,
        started=1_790_000_000.0 + 30 * number,
    )


def made_results() -> list[TrialResult]:
    """Six trials: 0, 1 and 4 are the front, 2 is dominated, 3 failed, 5 was stopped."""
    return [
        made_result(0, 60_000, 0.30, 0.981, bits=8, model="trials/0000/model.onnx"),
        made_result(1, 24_000, 0.22, 0.975, bits=4, model="trials/0001/model.onnx"),
        made_result(2, 61_000, 0.31, 0.970, bits=8),
        made_failure(3, "DivergedError: the loss was nan after 12 steps"),
        made_result(4, 9_000, 0.15, 0.940, bits=2, model="trials/0004/model.onnx"),
        made_stop(5),
    ]


def made_front(results: Sequence[TrialResult], limits: Sequence[Limit] = LIMITS) -> ParetoFront:
    """The front, its members scored on a test split of 1,000."""
    front = ParetoFront.of(results, OBJECTIVES, limits, BASELINE)
    test = {
        member.number: TestScore(
            accuracy=member.metrics["accuracy"] - 0.004,
            low=member.metrics["accuracy"] - 0.013,
            high=member.metrics["accuracy"] + 0.003,
            examples=1000,
        )
        for member in front.members
    }
    baseline_test = TestScore(accuracy=0.979, low=0.968, high=0.986, examples=1000)
    return front.model_copy(update={"test": test, "baseline_test": baseline_test})


def made_many(count: int, seed: int = 0) -> list[TrialResult]:
    """`count` trials as a search of a small network leaves them: small files lose accuracy, some badly."""
    draw = np.random.default_rng(seed)
    results = []
    for number in range(count):
        size = float(BASELINE["size_bytes"] / np.exp(draw.uniform(np.log(2.5), np.log(70))))
        latency = float(BASELINE["latency_ms"] / np.exp(draw.uniform(np.log(1.3), np.log(6))))
        lost = 0.0008 * (BASELINE["size_bytes"] / size) ** 1.1 + 0.002 * BASELINE["latency_ms"] / latency
        lost += float(draw.exponential(0.006)) + (float(draw.uniform(0.1, 0.5)) if draw.random() < 0.08 else 0)
        bits, share = int(draw.integers(2, 9)), float(draw.choice([0.0, 0.25, 0.5, 0.75]))
        accuracy = round(max(0.1, BASELINE["accuracy"] + 0.004 - lost), 3)
        results.append(made_result(number, round(size), round(latency, 4), accuracy, bits=bits, share=share))
    return results


def made_model(scale: float = 1.0) -> bytes:
    """An ONNX file that multiplies a batch (n, 4) by a 4x3 matrix of `scale`."""
    weight = numpy_helper.from_array(np.full((4, 3), scale, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def made_folder(path: Path, results: Sequence[TrialResult]) -> RunFolder:
    """A run folder with the record and the exported files of `results`."""
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.run_json.write_text(json.dumps({"version": 1}))
    folder.record.write_text("".join(result.to_json() + "\n" for result in results))
    for result in results:
        if result.model:
            file = folder.path / result.model
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(made_model(float(result.number)))
    return folder
