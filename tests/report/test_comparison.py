"""Several runs side by side."""

import json
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.front import ParetoFront, hypervolume
from autocompress.objective import USUAL, Objective, Scoring
from autocompress.opened import read_front
from autocompress.report.compare_page import comparison_markdown, verdict
from autocompress.report.comparison import Contender, comparison_of, contender_of
from autocompress.result import TrialResult
from autocompress.trackers.mlflow_run import MlflowRun
from tests.made import BASELINE, ENVIRONMENT, LIMITS, OBJECTIVES, made_folder, made_front, made_results
from tests.toy import call, copy_run

Capture = pytest.CaptureFixture[str]


def run_of(
    path: Path,
    *,
    results: list[TrialResult] | None = None,
    baseline: dict[str, float] = BASELINE,
    digests: dict[str, str] | None = None,
    seed: str = "0",
    scoring: Scoring = USUAL,
    objectives: tuple[Objective, ...] = OBJECTIVES,
) -> Contender:
    results = made_results() if results is None else results
    folder = made_folder(path, results)
    front = made_front(results).model_copy(update={"baseline": baseline, "objectives": objectives, "scoring": scoring})
    note = MlflowRun(
        key=path.name,
        tracking_uri="sqlite:////x.db",
        experiment_name="mnist",
        title=path.name,
        settings={"seed": seed, "sampler": "tpe"},
        objectives=objectives,
        limits=LIMITS,
        baseline=baseline,
        datasets={"train": 3000, "validation": 1000},
        digests=digests or {"train": "aaa", "validation": "bbb"},
    )
    folder.mlflow_json.write_text(note.to_json())
    return contender_of(folder, path.name, front)


def smaller(factor: float) -> list[TrialResult]:
    """The six trials, with files that are so much smaller."""
    return [
        result.model_copy(update={"metrics": result.metrics | {"size_bytes": result.metrics["size_bytes"] * factor}})
        if result.metrics
        else result
        for result in made_results()
    ]


def test_runs_that_differ_in_their_seed_alone_are_compared(tmp_path: Path) -> None:
    found = comparison_of([run_of(tmp_path / "one"), run_of(tmp_path / "two", results=smaller(0.5), seed="1")])
    assert found.warnings == ()
    assert [(one.matter, one.values) for one in found.differences] == [
        ("Search", ("Seed 0. sampler tpe.", "Seed 1. sampler tpe."))
    ]
    one, two = found.volumes
    assert one is not None
    assert two is not None
    assert two > one > 0
    assert verdict(found) == f"two comes to the largest hypervolume, {two:.3f}; next is one with {one:.3f}."
    assert found.reference == "size_bytes, latency_ms, accuracy; one reference for all: 420.0 kB, 0.800 ms, 98.2%"


def test_the_reference_favours_nobody(tmp_path: Path) -> None:
    slower = BASELINE | {"latency_ms": 0.81}  # timed again: the same network, a little slower that day
    contenders = [run_of(tmp_path / "one"), run_of(tmp_path / "two", baseline=slower)]
    found = comparison_of(contenders)
    assert found.warnings == ()
    assert found.volumes[0] == found.volumes[1], "the same models are worth the same"
    assert found.volumes[0] == hypervolume([m.metrics for m in contenders[0].front.members], OBJECTIVES, slower)


def other_machine(results: list[TrialResult]) -> list[TrialResult]:
    there = ENVIRONMENT.model_copy(update={"cpu": "Cortex-A76"})
    return [result.model_copy(update={"environment": there if result.environment else None}) for result in results]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    ours = run_of(tmp_path / "ours")
    there = comparison_of([ours, run_of(tmp_path / "there", results=other_machine(made_results()))])
    assert "different hardware: times in milliseconds cannot be compared" in there.warnings[0]
    assert verdict(there) == "These runs cannot simply be compared."
    assert "each against its own uncompressed model" in there.reference
    assert there.differences[0].values[1].startswith("Cortex-A76, 2 cores")

    data = comparison_of([ours, run_of(tmp_path / "data", digests={"train": "aaa", "validation": "ccc"})])
    assert data.warnings == ("The runs were judged on different data: their scores cannot be compared.",)
    assert data.differences[0].values[1] == "train 3,000 (aaa), validation 1,000 (ccc)"

    scores = comparison_of(
        [ours, run_of(tmp_path / "scores", baseline=BASELINE | {"accuracy": 17.0}, scoring=Scoring(name="BLEU", share=False))]
    )
    assert scores.warnings[0] == "The scores are of different kinds: they cannot be compared."
    assert "ratios and points lost are against different models" in scores.warnings[1]


def test_what_is_not_on_record_is_no_difference(tmp_path: Path) -> None:
    known, unknown = run_of(tmp_path / "known"), run_of(tmp_path / "unknown")
    unknown.folder.mlflow_json.unlink()
    again = contender_of(unknown.folder, "unknown", unknown.front.model_copy(update={"baseline_test": None, "test": {}}))
    assert comparison_of([known, again]).warnings == ()


def test_runs_without_a_common_objective_are_refused(tmp_path: Path) -> None:
    size, time = (
        tuple(objective for objective in OBJECTIVES if objective.metric == name) for name in ("size_bytes", "latency_ms")
    )
    with pytest.raises(InputError, match="no objective in common"):
        comparison_of([run_of(tmp_path / "one", objectives=size), run_of(tmp_path / "two", objectives=time)])


def test_the_table_has_a_row_for_each_and_its_names_are_no_markup(tmp_path: Path) -> None:
    found = comparison_of([run_of(tmp_path / "a|b"), run_of(tmp_path / "two", results=smaller(0.5), seed="1")])
    table = comparison_markdown(found)
    assert "| a\\|b | 0.731 | 24.0 kB | 0.220 ms | 97.5% | 97.1 ± 0.8% | 17.5x smaller, 3.6x faster, -0.8 points" in table
    assert "| two | " in table
    assert f"`autocompress export {tmp_path / 'two'} --pick 1 -o two-recommended`" in table
    assert "| Search | Seed 0. sampler tpe. | Seed 1. sampler tpe. |" in table


def test_the_command_writes_a_page_and_a_table(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    other, page = tmp_path / "run", tmp_path / "out/both.html"
    copy_run(toy_run, other)
    # Two of the same name, and one of them found less.
    front = read_front_of(other)
    (other / "front.json").write_text(front.model_copy(update={"members": front.members[:1]}).to_json())
    assert call("compare", toy_run, other, "-o", page) == 0
    out = capsys.readouterr().out
    assert str(toy_run) in out, "by their paths, when their names are the same"
    assert f"look at {page}, or {page.with_suffix('.md')} for a pull request" in out
    assert page.stat().st_size < 200_000
    assert "| run | hypervolume |" in page.with_suffix(".md").read_text()
    data = page.read_text().split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert len(json.loads(data)["runs"]) == 2

    assert call("compare", toy_run, "-o", page) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert call("compare", toy_run, toy_run, "-o", page) == 2
    assert "a run is given twice" in capsys.readouterr().err
    assert call("compare", toy_run, tmp_path / "none", "-o", page) == 2
    assert "no run folder" in capsys.readouterr().err


def read_front_of(folder: Path) -> ParetoFront:
    from autocompress.folder import RunFolder

    return read_front(RunFolder(folder))
