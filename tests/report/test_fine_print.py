from pathlib import Path

import pytest

from autocompress.folder import RunFolder
from autocompress.policy import LayerPolicy, Policy
from autocompress.report.details import details_of
from autocompress.report.evidence import Evidence, evidence_of
from autocompress.report.fine_print import fine_print_of, latency_noise
from autocompress.report.landmarks import PLAIN, landmarks, plain_8_bits
from autocompress.result import TrialResult
from autocompress.target import Target
from autocompress.trackers.mlflow_run import MlflowRun
from tests.made import BASELINE, LAYERS, LIMITS, OBJECTIVES, made_front, made_many, made_result, made_results
from tests.made_evidence import made_refits, made_run
from tests.tables_made import made_costs


def words_of(results: list[TrialResult], evidence: Evidence) -> dict[str, str]:
    front = made_front(results)
    marks = landmarks(evidence.rivals, results, front, LAYERS)
    return {item.name: " ".join(item.words) for item in fine_print_of(front, results, evidence, marks)}


def test_sizes_of_splits_the_seed_and_the_versions_come_from_the_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.run_json.write_text('{"version": 1, "started": 1790000000.0, "versions": {"optuna": "5.0.0"}}')
    run = MlflowRun(
        key="k",
        tracking_uri="sqlite:///x",
        experiment_name="x",
        title="t",
        settings={"experiment": "/home/me/mine.py", "seed": "7", "sampler": "tpe"},
        objectives=OBJECTIVES,
        limits=LIMITS,
        baseline=BASELINE,
        datasets={"train": 3000, "validation": 1000},
    )
    folder.mlflow_json.write_text(run.to_json())
    words = words_of(made_results(), evidence_of(folder))
    assert words["Search"] == "Begun on 2026-09-21 at 14:13 UTC. Seed 7. experiment mine.py, sampler tpe."
    assert words["Splits"].startswith("train: 3,000 examples, trained and calibrated on. validation: 1,000 examples,")
    assert "test: 1,000 examples" in words["Splits"]
    assert words["Versions"] == "onnxruntime 1.32.0, optuna 5.0.0, torch 2.13.0"
    assert words["Target"] == "Not on record."


def test_noise_of_latency_is_that_of_files_of_the_same_shape() -> None:
    ratios = (0.2, 0.202, 0.198, 0.2, 0.204, 0.196)
    results = [made_result(0, 24_000, ratio * 0.8, 0.97) for ratio in ratios]
    results += [made_result(0, 30_000, 0.7, 0.97, bits=7)]  # of another shape
    noise = latency_noise(results)
    assert noise is not None
    assert noise.repeats == 5
    assert noise.deviation == pytest.approx(0.0141, abs=1e-4)
    assert "differ by 1.4% (one standard deviation over 5 repeats)" in words_of(results, Evidence())["Latency"]
    assert latency_noise(results[2:]) is None
    assert "Noise: not measured" in words_of(results[2:], Evidence())["Latency"]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    nothing = words_of(made_results(), Evidence())["Not measured"]
    for what in ("was trained once", "Plain 8-bit quantisation", "`autocompress baseline`", "sensitivity", "Memory and energy"):
        assert what in nothing
    folder, _, results = made_run(tmp_path / "run")
    more = words_of(list(results), evidence_of(folder))["Not measured"]
    for what in ("was trained once", "`autocompress baseline`", "sensitivity"):
        assert what not in more
    assert "Bytes and time of single layers." in more


def test_plain_8_bits_are_all_layers_in_8_bits_and_nothing_pruned() -> None:
    def in_bits(number: int, bits: int, accuracy: float, *, integer: bool, share: float = 0.0) -> TrialResult:
        how = LayerPolicy(weight_bits=bits, activation_bits=8 if integer else None)
        policy = Policy(channel_sparsity={"features.0": share} if share else {}, layers={layer.name: how for layer in LAYERS})
        return made_result(number, 100_000, 0.4, accuracy).model_copy(update={"policy": policy})

    floats, worse, best = (
        in_bits(0, 8, 0.99, integer=False),
        in_bits(1, 7, 0.97, integer=True),
        in_bits(2, 7, 0.98, integer=True),
    )
    front = made_front([])
    others = [in_bits(3, 4, 0.99, integer=True), in_bits(4, 8, 0.99, integer=True, share=0.5)]
    assert plain_8_bits([floats, worse, best, *others], LAYERS, front) == best
    assert plain_8_bits([floats, *others], LAYERS, front) == floats
    assert plain_8_bits(others, LAYERS, front) is None
    marks = landmarks({"uniform": [worse]}, others, made_front(others), LAYERS)
    assert [(mark.name, mark.models) for mark in marks] == [(PLAIN, (worse,)), ("uniform", (worse,))]
    marks = landmarks({"int8": [worse], "uniform": [best]}, others, made_front(others), LAYERS)
    assert [(mark.name, mark.models) for mark in marks] == [(PLAIN, (worse,)), ("uniform", (best,))], "the one that is for this"


def test_details_hold_what_repeats_once_and_layers_as_the_cost_table_knows_them() -> None:
    results = [*made_results(), *made_refits()]
    costs = made_costs(LAYERS, Target())
    details = details_of(made_front(results), results, LAYERS, Target().menu, costs)
    assert sorted(details["trials"]) == [0, 1, 2, 4, 6, 7, 8]
    assert len(details["settings"]) == 3, "8, 4 and 2 bits"
    assert len(details["shares"]) == 1
    assert len(details["states"]) == 3 + 3 * 3, "as they are, and at each of three bit-widths"
    setting, inputs, outputs, size, time = details["states"][details["trials"][1]["states"][1]]
    how = results[1].policy.layers["features.3"]
    named = dict(zip(details["fields"], details["settings"][setting], strict=True))
    assert LayerPolicy.model_validate(named) == how
    assert (inputs, outputs) == (32, 32)
    assert size == round(costs.layer_bytes("features.3", 32, 32, how))
    assert time == pytest.approx(costs.layer_ms("features.3", 32, 32, how), rel=1e-3)


def test_details_without_a_cost_table_or_with_that_of_another_network_have_no_bytes() -> None:
    results = made_results()
    other = made_costs(LAYERS, Target())
    other = other.model_copy(update={"layers": other.layers[1:]})
    for costs in (None, other):
        details = details_of(made_front(results), results, LAYERS, Target().menu, costs)
        assert details["rest"] is None
        assert all(state[3:] == [None, None] for state in details["states"])


def test_of_too_many_trials_the_front_has_details(monkeypatch: pytest.MonkeyPatch) -> None:
    results = made_many(300)
    front = made_front(results)
    monkeypatch.setattr("autocompress.report.details._MOST_ENTRIES", 100 * 23)
    details = details_of(front, results, LAYERS, Target().menu, None)
    assert {member.number for member in front.members} <= set(details["trials"])
    assert len(details["trials"]) == max(100, len(front.members))
