"""Scores of which lower is better: all that is decided by a score is decided as for its negative, of which higher is."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compute import HypervolumeSoFar
from autocompress.errors import ExperimentError, InputError
from autocompress.experiment import load_experiment
from autocompress.front import FrontSoFar, ParetoFront
from autocompress.halving import Halving, Ladder
from autocompress.objective import USUAL, Limit, Objective, Scoring
from autocompress.refitting import next_to_refit
from autocompress.report.data import nearest_lines
from autocompress.report.decision import decision_of
from autocompress.result import TrialResult
from tests.made import BASELINE, OBJECTIVES, made_folder, made_result, made_results
from tests.made_evidence import made_refits
from tests.toy import write_experiment

ERROR = Scoring(name="mean error", goal="min", share=False)
# As the scores that it is the mirror of, a share: of what is none, a pick may lose one per cent instead of a point.
BACKWARDS = Scoring(name="mean error", goal="min")
METRICS = ("size_bytes", "latency_ms", "accuracy")
ERRORS = tuple(Objective.of(name, ERROR) for name in METRICS)
FORTH = Limit.parse("accuracy >= baseline - 0.03")
BACK = Limit.parse("mean error <= baseline + 0.03", ERROR)


def mirrored(result: TrialResult) -> TrialResult:
    metrics = {name: -value if name == "accuracy" else value for name, value in result.metrics.items()}
    rungs = tuple(rung.model_copy(update={"accuracy": -rung.accuracy}) for rung in result.rungs)
    return result.model_copy(update={"metrics": metrics, "rungs": rungs})


BASELINE_BACK = BASELINE | {"accuracy": -BASELINE["accuracy"]}

drawn = st.tuples(
    st.sampled_from([9_000.0, 24_000.0, 100_000.0, 500_000.0]),
    st.sampled_from([0.1, 0.3, 0.9]),
    st.floats(0.9, 1.0).map(lambda value: round(value, 3)),
    st.none() | st.integers(0, 3),
)
many = st.lists(drawn, max_size=12).map(
    lambda points: [
        made_result(number, *point).model_copy(update={"refit_of": parent if parent is not None and parent < number else None})
        for number, (*point, parent) in enumerate(points)
    ]
)


def numbers(results: Sequence[TrialResult]) -> list[int]:
    return [result.number for result in results]


@given(many)
def test_the_front_of_errors_is_that_of_their_negatives(results: list[TrialResult]) -> None:
    back = [mirrored(result) for result in results]
    front = ParetoFront.of(results, OBJECTIVES, [FORTH], BASELINE)
    other = ParetoFront.of(back, ERRORS, [BACK], BASELINE_BACK, BACKWARDS)
    assert numbers(other.members) == numbers(front.members)
    assert numbers(other.nearest) == numbers(front.nearest)
    assert (other.doubtful, set(other.spread)) == (front.doubtful, set(front.spread))
    assert other.hypervolume() == pytest.approx(front.hypervolume())
    for how in ("knee", "smallest", "fastest", "best"):
        for drop in (None, 0.01):
            ours, theirs = (of.pick(how, max_drop=drop) for of in (front, other))
            assert (ours and ours.number) == (theirs and theirs.number)
    assert FrontSoFar(ERRORS, [BACK], BASELINE_BACK, back, scoring=BACKWARDS).front == other
    assert ParetoFront.from_json(other.to_json(), source="front") == other


@given(many)
def test_what_is_trained_further_is_what_would_be_for_the_negatives(results: list[TrialResult]) -> None:
    back = [mirrored(result) for result in results]
    chosen = next_to_refit(results, OBJECTIVES, [FORTH], BASELINE, taken=[0])
    other = next_to_refit(back, ERRORS, [BACK], BASELINE_BACK, taken=[0], scoring=BACKWARDS)
    assert (chosen and chosen.number) == (other and other.number)


@given(many)
def test_hypervolumes_grow_alike(results: list[TrialResult]) -> None:
    forth, back = HypervolumeSoFar(OBJECTIVES, [FORTH], BASELINE), HypervolumeSoFar(ERRORS, [BACK], BASELINE_BACK, BACKWARDS)
    grown = [forth.add(result) for result in results]
    assert [back.add(mirrored(result)) for result in results] == pytest.approx(grown)


@given(many)
def test_halving_stops_the_same_trials(results: list[TrialResult]) -> None:
    forth = Ladder(Halving(), OBJECTIVES, [FORTH], BASELINE)
    back = Ladder(Halving(), ERRORS, [BACK], BASELINE_BACK)
    for result in results:
        forth.reached(result.number, result.rungs[:1], 100)
        back.reached(result.number, mirrored(result).rungs[:1], 100)
        assert forth.goes_on(result.number, 100) == back.goes_on(result.number, 100)


def test_an_error_is_shown_by_its_name_and_as_it_is(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "run", made_results())
    results = [mirrored(result) for result in [*made_results(), *made_refits()]]
    front = ParetoFront.of(results, ERRORS, [BACK], BASELINE_BACK, ERROR)
    decision = decision_of(front, folder)
    assert [choice.role for choice in decision.alternatives] == ["smallest", "fastest", "best mean error"]
    assert decision.recommended is not None
    assert (
        decision.recommended.sentence
        == "17.5x smaller, 3.6x faster, mean error +0.6%; mean error -0.9763 ± 0.0025 on validation"
    )
    strict = Limit.parse("mean error <= baseline - 0.5", ERROR)
    lines = nearest_lines(ParetoFront.of(results, ERRORS, [strict], BASELINE_BACK, ERROR), results)
    assert lines[1].endswith("mean error -0.981; misses mean error <= baseline - 0.5 by 0.501")


def test_a_score_goes_by_its_name_in_objectives_and_limits() -> None:
    assert Objective.of("mean error", ERROR) == Objective(metric="accuracy", goal="min") == Objective.of("accuracy", ERROR)
    assert BACK.metric == "accuracy"
    assert not Objective.of("accuracy", ERROR).is_cost
    with pytest.raises(InputError, match="no metric 'mean error'"):
        Objective.of("mean error")


@pytest.mark.parametrize(
    ("text", "scoring", "hint"),
    [
        ("accuracy <= 0.9", USUAL, "higher is better for this score; write it like 'accuracy >= baseline - 0.01'"),
        ("mean error >= 1", ERROR, "lower is better for this score; write it like 'mean error <= baseline + 0.01'"),
    ],
)
def test_a_limit_on_the_wrong_side_is_refused(text: str, scoring: Scoring, hint: str) -> None:
    with pytest.raises(InputError) as raised:
        Limit.parse(text, scoring)
    assert hint in str(raised.value)


def test_an_objective_against_the_task_is_refused(tmp_path: Path) -> None:
    file = write_experiment(tmp_path)
    text = file.read_text().replace("limits=", 'objectives=("size", Objective(metric="accuracy", goal="min")), limits=')
    file.write_text(text.replace("import Budget,", "import Budget, Objective,"))
    with pytest.raises(ExperimentError, match="'accuracy' is to be min, but the task says lower_is_better = False"):
        load_experiment(file)
