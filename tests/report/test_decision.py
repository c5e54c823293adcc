from pathlib import Path

import pytest

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.objective import Limit, Objective, Scoring
from autocompress.report.decision import decision_of, gains_words, score_words
from autocompress.target import Target
from tests.made import BASELINE, OBJECTIVES, made_front, made_result, made_results
from tests.made_evidence import made_refits


def test_the_decision_is_the_recommended_model_in_a_sentence_and_the_ends_of_the_front(tmp_path: Path) -> None:
    decision = decision_of(made_front(made_results()), RunFolder(tmp_path / "run"))
    assert decision.recommended is not None
    assert decision.recommended.sentence == "17.5x smaller, 3.6x faster, -0.8 points; 97.1 ± 0.8% on test"
    assert decision.recommended.command == f"autocompress export {tmp_path / 'run'} --pick 1 -o run-recommended"
    assert [(choice.role, choice.number) for choice in decision.alternatives] == [
        ("smallest", 4),
        ("fastest", 4),
        ("most accurate", 0),
    ]


def test_points_are_those_of_the_test_split_where_both_models_were_scored_there() -> None:
    front = made_front(made_results())
    member = front.members[1]
    assert gains_words(member, front).endswith("-0.8 points"), "0.971 after 0.979"
    untested = front.model_copy(update={"test": {}})
    assert gains_words(member, untested).endswith("-0.7 points"), "0.975 after 0.982"
    assert score_words(member, untested) == "97.5% on validation"
    seeds = made_front([*made_results(), *made_refits()]).model_copy(update={"test": {}})
    assert score_words(seeds.members[1], seeds) == "97.6 ± 0.3% on validation"


@pytest.mark.parametrize(
    ("size", "latency", "accuracy", "words"),
    [
        (420_000, 0.8, 0.982, "1.0x smaller, 1.0x faster, ±0.0 points"),
        (840_000, 1.0, 0.99, "2.0x larger, 1.2x slower, +0.8 points"),
        (42_000, 0.2, 0.9824, "10.0x smaller, 4.0x faster, ±0.0 points"),
    ],
)
def test_what_is_worse_is_called_so(size: float, latency: float, accuracy: float, words: str) -> None:
    result = made_result(0, size, latency, accuracy)
    assert gains_words(result, made_front([result], ()).model_copy(update={"test": {}})) == words


def test_a_score_that_is_no_share_has_no_points() -> None:
    gain = Scoring(name="BLEU", share=False)
    front = ParetoFront.of([made_result(0, 42_000, 0.2, 31.25)], OBJECTIVES, (), BASELINE | {"accuracy": 33.0}, gain)
    assert gains_words(front.members[0], front) == "10.0x smaller, 4.0x faster, BLEU -5.3%"
    assert score_words(front.members[0], front) == "BLEU 31.25 on validation"


def test_times_at_further_targets_are_told() -> None:
    place = Target.parse("openvino-cpu")
    metric = f"latency_ms/{place.name}"
    result = made_result(0, 42_000, 0.2, 0.98)
    result = result.model_copy(update={"metrics": result.metrics | {metric: 0.5}})
    objectives = (*OBJECTIVES, Objective(metric=metric, goal="min"))
    front = ParetoFront.of([result], objectives, (), BASELINE | {metric: 1.0})
    assert gains_words(result, front) == "10.0x smaller, 4.0x faster (2.0x on openvino-cpu), -0.2 points"


def test_when_no_limit_is_met_the_nearest_can_be_exported(tmp_path: Path) -> None:
    front = made_front(made_results(), (Limit.parse("size <= 5 kB"),))
    decision = decision_of(front, RunFolder(tmp_path / "my run"))
    assert decision.recommended is None
    assert [choice.number for choice in decision.alternatives] == [4, 1, 0]
    assert decision.alternatives[0].command == f"autocompress export '{tmp_path / 'my run'}' --pick 4 -o 'my run-4'"


def test_a_run_below_the_working_folder_is_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    decision = decision_of(made_front(made_results()), RunFolder("runs/mine"))
    assert decision.recommended is not None
    assert decision.recommended.command == "autocompress export runs/mine --pick 1 -o mine-recommended"


def test_without_any_complete_trial_there_is_nothing_to_choose(tmp_path: Path) -> None:
    decision = decision_of(made_front([]), RunFolder(tmp_path))
    assert (decision.recommended, decision.alternatives) == (None, ())
