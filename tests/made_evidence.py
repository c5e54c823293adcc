"""What a run folder holds beside its front, made by hand: refits, rivals, sensitivities, importances."""

from collections.abc import Sequence
from pathlib import Path

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.importance import Importance
from autocompress.option import Option, What
from autocompress.result import Rung, TrialResult
from autocompress.tables import Divergence, Sensitivity
from tests.made import BASELINE, made_folder, made_front, made_result, made_results, made_stop

IMPORTANCE = Importance(
    trials=40,
    shares={
        "size_bytes": {"budget": 0.7, "balance": 0.296, "steps": 0.004},
        "latency_ms": {"balance": 0.8, "budget": 0.2},
    },
    missing={"accuracy": "it is the same in all 40 trials"},
)


def made_sensitivity() -> Sensitivity:
    """Two groups and three layers of `tests.made.LAYERS`; 2 bits of the first layer are not finite."""
    table: list[tuple[str, What, dict[float, float | None]]] = [
        ("features.0", "channel_sparsity", {0.5: 0.2}),
        ("features.3", "channel_sparsity", {0.25: 0.01, 0.5: 0.04, 0.75: 0.9}),
        ("features.0", "weight_bits", {8: 0.0, 4: 0.03, 2: None}),
        ("features.3", "weight_bits", {8: 0.0001, 4: 0.012, 2: 2.5}),
        ("classifier", "weight_bits", {8: 0.0002, 4: 0.002, 2: 0.35}),
        ("classifier", "weight_sparsity", {0.25: 0.001, 0.5: 0.02}),
        ("features.3", "activation_bits", {8: 0.004}),
    ]
    entries = [
        Divergence(option=Option(what=what, name=name, value=value), value=divergence)
        for name, what, values in table
        for value, divergence in values.items()
    ]
    return Sensitivity(
        key="made", divergence="KL of the outputs, nats", examples=512, seconds=10, entries=tuple(reversed(entries))
    )


def made_refits() -> list[TrialResult]:
    """Trial 1 trained further with three seeds: the second is nearest to their mean."""
    return [
        made_result(number, 24_000, 0.22, accuracy, bits=4, model="trials/0001/model.onnx").model_copy(update={"refit_of": 1})
        for number, accuracy in ((6, 0.974), (7, 0.976), (8, 0.979))
    ]


def made_halted(number: int) -> TrialResult:
    """Stopped at its second rung, after seven seconds."""
    sizes = {"size_bytes": 42_000.0, "latency_ms": 0.4}
    rungs = (Rung(step=0, accuracy=0.3, metrics=sizes, seconds=2.5), Rung(step=50, accuracy=0.41, seconds=7.0))
    return made_stop(number).model_copy(update={"rungs": rungs, "summary": "-75% channels, w2 a8, 150 steps"})


def made_run(path: Path, *, rivals: bool = True) -> tuple[RunFolder, ParetoFront, Sequence[TrialResult]]:
    """A run with refits, sensitivities and importances, and three rivals that spent as much: one of them compressed nothing."""
    results = [*made_results(), *made_refits()]
    front = made_front(results)
    folder = made_folder(path, results)
    folder.front_json.write_text(front.to_json())
    folder.sensitivity.write_text(made_sensitivity().to_json())
    folder.importance.write_text(IMPORTANCE.to_json())
    if rivals:
        made_folder(folder.baselines / "uniform", [made_result(number, 90_000, 0.5, 0.98) for number in range(8)])
        made_folder(folder.baselines / "tpe", [made_result(number, 70_000 - 900 * number, 0.4, 0.98) for number in range(8)])
        same = made_result(0, BASELINE["size_bytes"], BASELINE["latency_ms"], 0.984)
        made_folder(folder.baselines / "uncompressed", [same])
    return folder, front, results
