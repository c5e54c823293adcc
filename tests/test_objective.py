import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import InputError, UnknownNameError
from autocompress.objective import METRICS, Limit, Objective

BASELINE = {"size_bytes": 1_200_000.0, "latency_ms": 2.0, "accuracy": 0.9, "params": 300_000.0, "f1": 0.8}


@pytest.mark.parametrize(
    ("given_name", "metric"), [("size", "size_bytes"), ("latency", "latency_ms"), ("accuracy", "accuracy")]
)
def test_an_objective_by_name(given_name: str, metric: str) -> None:
    assert Objective.of(given_name) == Objective(metric=metric, goal=METRICS[metric])


def test_an_objective_of_the_tasks_own() -> None:
    own = Objective(metric="f1", goal="max")
    assert Objective.of(own) is own


def test_an_unknown_metric_comes_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no metric 'latency_sm'; did you mean 'latency_ms'\?"):
        Objective.of("latency_sm")


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_of_two_different_values_one_is_better(left: float, right: float) -> None:
    for goal in ("min", "max"):
        objective = Objective(metric="any", goal=goal)
        assert objective.better(left, right) != objective.better(right, left) or left == right
        assert not objective.better(left, left)
    assert Objective.of("size").better(1, 2)
    assert Objective.of("accuracy").better(2, 1)


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("size <= 100 kB", "size_bytes", 100_000),
        ("size <= 100KiB", "size_bytes", 102_400),
        ("download_bytes<=2 mb", "download_bytes", 2_000_000),
        ("size <= 1e5", "size_bytes", 100_000),
        ("latency <= 500 us", "latency_ms", 0.5),
        ("latency_ms <= 2", "latency_ms", 2),
        ("latency <= 0.002 s", "latency_ms", 2),
        ("latency <= 0.5 * baseline", "latency_ms", 1.0),
        ("latency <= baseline * 0.5", "latency_ms", 1.0),
        ("size <= baseline / 12", "size_bytes", 100_000),
        ("size <= baseline - 200 kB", "size_bytes", 1_000_000),
        ("accuracy >= baseline", "accuracy", 0.9),
        ("accuracy >= baseline - 0.01", "accuracy", 0.89),
        ("accuracy >= baseline - 1%", "accuracy", 0.89),
        ("accuracy >= baseline + 0.01", "accuracy", 0.91),
        ("accuracy >= 85 %", "accuracy", 0.85),
        ("f1 >= baseline - 2 %", "f1", 0.78),
        ("accuracy >= .85", "accuracy", 0.85),
        ("accuracy >= -0.5", "accuracy", -0.5),
        ("  params <= 1e5  ", "params", 100_000),
    ],
)
def test_a_limit_is_read(text: str, metric: str, bound: float) -> None:
    limit = Limit.parse(text)
    assert limit.metric == metric
    assert limit.bound(BASELINE) == pytest.approx(bound)
    assert limit.text == text.strip()
    assert Limit.from_json(limit.to_json()) == limit


@pytest.mark.parametrize(
    "text",
    ["", "accuracy", "accuracy = 0.9", "accuracy > 0.9", "accuracy >= much", "size <= baseline / 0", "<= 3", "size <= -3"],
)
def test_an_unreadable_limit_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(InputError, match=r"write it like 'accuracy >= baseline - 0\.01'"):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("size <= 100 kg", r"size_bytes has no unit 'kg' \(one of: B, kB, MB, KiB, MiB\)"),
        ("size <= 100 ms", "size_bytes has no unit 'ms'"),
        ("size <= baseline - 50%", r"no unit '%'.*'0.5 \* baseline'"),
        ("latency <= 3 kB", r"latency_ms has no unit 'kB' \(one of: us, ms, s\)"),
        ("params <= baseline - 10 %", "give a plain number"),
        ("accuracy >= 3 ms", r"accuracy has no unit 'ms' \(one of: %\)"),
    ],
)
def test_a_unit_must_suit_the_metric(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "metrics", "excess"),
    [
        ("size <= 100 kB", {"size_bytes": 130_000.0}, 30_000),
        ("size <= 100 kB", {"size_bytes": 100_000.0}, 0),
        ("size <= 100 kB", {"size_bytes": 60_000.0}, -40_000),
        ("accuracy >= baseline - 0.01", {"accuracy": 0.87}, 0.02),
        ("accuracy >= baseline - 0.01", {"accuracy": 0.95}, -0.06),
    ],
)
def test_excess_is_how_far_beyond(text: str, metrics: dict[str, float], excess: float) -> None:
    assert Limit.parse(text).excess(metrics, BASELINE) == pytest.approx(excess)


def test_excess_of_what_was_not_measured_says_so() -> None:
    with pytest.raises(UnknownNameError, match="no metric 'size_bytes'"):
        Limit.parse("size <= 1").excess({"accuracy": 1.0}, BASELINE)
    with pytest.raises(UnknownNameError, match="no metric 'recall'; did you mean"):
        Limit.parse("recall >= baseline").bound({"recal": 1.0})


def test_objectives_and_limits_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Objective.of("size").goal = "max"
    with pytest.raises(ValidationError, match="frozen"):
        Limit.parse("size <= 1").offset = 2.0
