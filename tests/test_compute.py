import time
from pathlib import Path

import pandas as pd
import pytest

from autocompress.compute import (
    OURS,
    HypervolumeSoFar,
    Standing,
    curves,
    preparation_seconds,
    rivals_in,
    standings,
    used_seconds,
)
from autocompress.errors import InputError, RunFolderError
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.result import TrialResult
from autocompress.tables import Sensitivity
from tests.made import BASELINE, LIMITS, OBJECTIVES, made_failure, made_folder, made_many, made_result, made_results, made_stop

SENSITIVITY = Sensitivity(key="k", divergence="KL", examples=8, seconds=30.0, entries=())


def front_of(results: list[TrialResult]) -> ParetoFront:
    return ParetoFront.of(results, OBJECTIVES, LIMITS, BASELINE)


def finished(path: Path, results: list[TrialResult], *, prepared: bool = False) -> RunFolder:
    """A run folder as a search leaves it; `prepared`: after 30 worker-seconds of sensitivities."""
    folder = made_folder(path, results)
    folder.front_json.write_text(front_of(results).to_json())
    if prepared:
        folder.sensitivity.write_text(SENSITIVITY.to_json())
    return folder


def seeds_of(parent: TrialResult, scores: list[float], first: int) -> list[TrialResult]:
    """Refits of one trial, with these scores."""
    return [
        parent.model_copy(
            update={
                "number": first + place,
                "refit_of": parent.number,
                "metrics": {**parent.metrics, "accuracy": score},
                "policy": parent.policy.model_copy(
                    update={"finetune": parent.policy.finetune.model_copy(update={"steps": 999})}
                ),
            }
        )
        for place, score in enumerate(scores)
    ]


def test_the_hypervolume_so_far_is_that_of_the_front_after_every_trial() -> None:
    results = [*made_many(60), made_failure(60, "out of memory"), made_stop(61), *made_many(80, seed=1)[70:]]
    volume = HypervolumeSoFar(OBJECTIVES, LIMITS, BASELINE)
    for count, result in enumerate(results, 1):
        assert volume.add(result) == pytest.approx(front_of(results[:count]).hypervolume())


def test_the_seeds_of_a_refit_are_judged_together_as_in_the_front() -> None:
    results = made_many(20)
    best = front_of(results).members[0]
    refits = seeds_of(best, [best.metrics["accuracy"] + gain for gain in (0.02, 0.001, 0.001)], 20)
    everything = [*results, *refits, *made_many(30, seed=3)[25:]]
    volume = HypervolumeSoFar(OBJECTIVES, LIMITS, BASELINE)
    grown = [volume.add(result) for result in everything]
    assert grown[len(results) + 2] < grown[len(results)], "the first seed was lucky"
    for count in range(1, len(results) + len(refits) + 1):
        assert grown[count - 1] == pytest.approx(front_of(everything[:count]).hypervolume())
    assert grown[-1] == pytest.approx(front_of(everything).hypervolume())


def test_a_result_that_lacks_a_metric_or_is_not_finite_adds_nothing() -> None:
    volume = HypervolumeSoFar(OBJECTIVES, LIMITS, BASELINE)
    whole = made_result(0, 24_000, 0.22, 0.975)
    value = volume.add(whole)
    lacking = {name: metric for name, metric in whole.metrics.items() if name != "accuracy"}
    assert volume.add(whole.model_copy(update={"number": 1, "metrics": lacking})) == value > 0
    assert volume.add(whole.model_copy(update={"number": 2, "metrics": {**whole.metrics, "latency_ms": float("nan")}})) == value


def test_a_curve_is_against_the_compute_of_all_trials_and_of_what_was_measured_before(tmp_path: Path) -> None:
    stopped = made_stop(5).model_copy(update={"rungs": (made_stop(5).rungs[0].model_copy(update={"seconds": 2.0}),)})
    results = [*made_results()[:5], stopped]
    folder = finished(tmp_path / "run", results, prepared=True)
    table = curves(folder)
    assert list(table.columns) == ["searcher", "worker_seconds", "hypervolume", "number"]
    assert set(table.searcher) == {OURS}
    # Each complete trial took 20.5 seconds, the failed one none, the stopped one 2.
    assert table.worker_seconds.tolist() == pytest.approx([30, 50.5, 71, 91.5, 91.5, 112, 114])
    assert table.number.isna().tolist() == [True] + [False] * 6
    assert table.number[1:].tolist() == [0, 1, 2, 3, 4, 5]
    assert table.hypervolume[0] == 0
    assert table.hypervolume.is_monotonic_increasing
    assert table.hypervolume.iloc[-1] == pytest.approx(front_of(results).hypervolume())
    assert preparation_seconds(folder) == 30
    assert used_seconds(folder) == pytest.approx(114)


def test_rivals_are_judged_by_the_limits_and_the_baseline_of_the_run(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", made_results(), prepared=True)
    (folder.baselines / "empty").mkdir(parents=True)
    strict = made_result(0, 9_000, 0.1, 0.5)  # beyond the limit of the run
    finished(folder.baselines / "random", [strict, made_result(1, 100_000, 0.4, 0.981)])
    assert [rival.path.name for rival in rivals_in(folder)] == ["random"]
    table = curves(folder)
    random = table[table.searcher == "random"]
    assert random.worker_seconds.tolist() == pytest.approx([0, 20.5, 41])
    assert random.hypervolume.iloc[1] == 0
    assert random.hypervolume.iloc[2] == pytest.approx(front_of([made_result(1, 100_000, 0.4, 0.981)]).hypervolume())


def test_standings_say_when_the_run_had_what_a_rival_came_to(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", made_results(), prepared=True)
    weak, strong, lost = made_result(1, 100_000, 0.4, 0.98), made_result(0, 2_000, 0.05, 0.982), made_result(0, 1, 0.1, 0.2)
    finished(folder.baselines / "weak", [made_failure(0, "it burst"), weak, *[made_stop(n) for n in (2, 3)]])
    finished(folder.baselines / "strong", [strong])
    finished(folder.baselines / "lost", [lost])
    strongest, second, last = standings(folder)
    assert (strongest.rival, strongest.trials, strongest.reached, strongest.share) == ("strong", 1, None, None)
    assert strongest.hypervolume > front_of(made_results()).hypervolume() > strongest.ours == 0, "nothing after 20.5 seconds"
    assert second.rival == "weak"
    assert second.trials == 4
    assert second.worker_seconds == pytest.approx(20.5)
    assert second.reached == pytest.approx(50.5)
    assert second.share == pytest.approx(50.5 / 20.5)
    assert second.accuracy == 0.98
    assert (last.rival, last.hypervolume, last.share, last.accuracy) == ("lost", 0, None, 0.2)


def test_what_was_reached_by_a_lucky_seed_alone_was_not_reached(tmp_path: Path) -> None:
    first = made_result(0, 24_000, 0.22, 0.960)
    lucky = [*seeds_of(first, [0.981, 0.961, 0.961], 1), made_result(9, 20_000, 0.2, 0.982)]
    folder = finished(tmp_path / "run", [first, *lucky])
    finished(folder.baselines / "tpe", [made_result(0, 24_000, 0.22, 0.970)])
    (only,) = standings(folder)
    assert only.reached == pytest.approx(5 * 20.5)


def test_a_run_without_a_front_or_with_damaged_tables_is_an_error(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "run", [])
    with pytest.raises(RunFolderError, match="has no front yet"):
        curves(folder)
    finished(folder.path, made_results())
    folder.costs.write_text("{}")
    with pytest.raises(InputError, match=r"costs\.json is no valid CostTable"):
        used_seconds(folder)


def test_two_thousand_trials_are_quick(tmp_path: Path) -> None:
    results = made_many(2000)
    folder = finished(tmp_path / "run", results)
    start = time.perf_counter()
    table = curves(folder)
    assert time.perf_counter() - start < 5
    assert isinstance(table, pd.DataFrame)
    assert len(table) == 2001
    assert table.hypervolume.iloc[-1] == pytest.approx(front_of(results).hypervolume())


def test_a_standing_without_anything_to_reach_has_no_share() -> None:
    nothing = Standing(rival="a", trials=1, worker_seconds=5, hypervolume=0, ours=0.5, reached=0.0, accuracy=None)
    assert nothing.share is None
