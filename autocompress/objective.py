"""What a search optimises, and the limits within which it must stay."""

import re
from typing import Literal

from autocompress.errors import InputError, unknown_name
from autocompress.noun import Noun
from autocompress.words import percent

Goal = Literal["min", "max"]

# The metric that a task's score is recorded as, whatever it is.
SCORE = "accuracy"
# What every trial measures.
METRICS: dict[str, Goal] = {
    "size_bytes": "min",
    "download_bytes": "min",
    "latency_ms": "min",
    SCORE: "max",
    "macs": "min",
    "params": "min",
}
_SHORT = {"size": "size_bytes", "download": "download_bytes", "latency": "latency_ms"}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "KiB": 1024.0, "MiB": 1024.0**2}
_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SHARES = {"%": 0.01}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_LIMIT = re.compile(r"^\s*(\w[\w ]*?(?:/[\w:-]+)?)\s*(<=|>=)\s*(.+?)\s*$")
_PLAIN = re.compile(rf"^(-?{_NUMBER})\s*([a-z%]*)$", re.IGNORECASE)
_SHIFTED = re.compile(rf"^baseline\s*(?:([+-])\s*({_NUMBER})\s*([a-z%]*))?$", re.IGNORECASE)
_SCALED = re.compile(rf"^(?:({_NUMBER})\s*\*\s*baseline|baseline\s*([*/])\s*({_NUMBER}))$", re.IGNORECASE)


class Scoring(Noun):
    """What is known of a task's score: what it is called where people read of it, which way is better, how it is shown.

    A `share`, such as that of right answers, is shown in percent.
    """

    name: str = SCORE
    goal: Goal = "max"
    share: bool = True

    def gain(self, value: float, reference: float) -> float:
        """By how much `value` is better than `reference`: below 0 where it is worse."""
        return value - reference if self.goal == "max" else reference - value

    def one_percent(self, reference: float) -> float:
        """One point of a share; of another score one per cent of `reference`."""
        return 0.01 if self.share else 0.01 * abs(reference)

    def change(self, value: float, reference: float) -> str:
        """What came of `reference`: ``-0.4 points`` of a share, ``RMSE +1.2%`` of another score."""
        size = self.one_percent(reference)
        ones = round((value - reference) / size, 1) if size else 0.0
        words = f"{ones:+.1f}" if ones else "±0.0"
        return f"{words} points" if self.share else f"{self.name} {words}%"

    def show(self, value: float) -> str:
        """``97.5%``, or the plain figure where it is no share."""
        return percent(value) if self.share else f"{value:.4g}"

    def words(self, value: float) -> str:
        """``accuracy 0.9754``."""
        return f"{self.name} {value:.4f}" if self.share else f"{self.name} {value:.4g}"


USUAL = Scoring()


class Objective(Noun):
    """One metric to make small (`min`) or large (`max`)."""

    metric: str
    goal: Goal

    @classmethod
    def of(cls, metric: "str | Objective", scoring: Scoring = USUAL) -> "Objective":
        """The objective of a metric by its name (`size` is short for `size_bytes`, and so on; ``latency/openvino-cpu`` is the
        latency at a further target; the score may go by its name in `scoring` too).

        Raises `UnknownNameError`; a metric of the task's own is given as `Objective(metric=..., goal=...)`.
        """
        if isinstance(metric, Objective):
            return metric
        name = _long(metric, scoring)
        if base_of(name) not in METRICS:
            raise unknown_name("metric", metric, {*METRICS, scoring.name})
        return cls(metric=name, goal=scoring.goal if name == SCORE else METRICS[base_of(name)])

    @property
    def is_cost(self) -> bool:
        """True for what is compared as a ratio, such as bytes and times; scores are compared by differences."""
        return self.goal == "min" and self.metric != SCORE

    def better(self, left: float, right: float) -> bool:
        return left < right if self.goal == "min" else left > right


class Limit(Noun):
    """A bound on a metric: ``metric op factor * baseline + offset`` (a factor of 0 is an absolute bound)."""

    metric: str
    op: Literal["<=", ">="]
    factor: float = 0.0
    offset: float = 0.0
    text: str

    @classmethod
    def parse(cls, text: str, scoring: Scoring = USUAL) -> "Limit":
        """Reads ``accuracy >= baseline - 0.01``, ``size <= 100 kB``, ``latency <= 0.5 * baseline``, ``size <= baseline / 12``.

        The score may go by its name in `scoring` too. Raises `InputError` that shows these forms, the units that the metric
        has, or on which side of its bound a score is better.
        """
        match = _LIMIT.match(text)
        if match is None:
            raise _unreadable(text)
        name, op, bound = match.groups()
        metric = _long(name, scoring)
        if metric == SCORE and (op == "<=") != (scoring.goal == "min"):
            good, sign, side = ("<=", "+", "lower") if scoring.goal == "min" else (">=", "-", "higher")
            raise InputError(
                f"limit {text!r}: {side} is better for this score; write it like '{name} {good} baseline {sign} 0.01'"
            )
        if (plain := _PLAIN.match(bound)) and not (bound.startswith("-") and METRICS.get(base_of(metric)) == "min"):
            factor, offset = 0.0, float(plain[1]) * _unit(plain[2], metric, text)
        elif shifted := _SHIFTED.match(bound):
            shift = float(shifted[2]) * _unit(shifted[3], metric, text) if shifted[2] else 0.0
            factor, offset = 1.0, -shift if shifted[1] == "-" else shift
        elif scaled := _SCALED.match(bound):
            number = float(scaled[1] or scaled[3])
            if scaled[2] == "/" and number == 0:
                raise _unreadable(text)
            factor, offset = (1 / number if scaled[2] == "/" else number), 0.0
        else:
            raise _unreadable(text)
        return cls(metric=metric, op="<=" if op == "<=" else ">=", factor=factor, offset=offset, text=text.strip())

    def bound(self, baseline: dict[str, float]) -> float:
        """The bound as a number. Raises `UnknownNameError` when the baseline has no such metric."""
        if self.factor == 0:
            return self.offset
        return self.factor * _metric(self.metric, baseline) + self.offset

    def excess(self, metrics: dict[str, float], baseline: dict[str, float]) -> float:
        """How far `metrics` lie beyond the bound, in the metric's unit; at most 0 where the limit is met.

        Raises `UnknownNameError` when the trial has no such metric.
        """
        gap = _metric(self.metric, metrics) - self.bound(baseline)
        return gap if self.op == "<=" else -gap


def base_of(metric: str) -> str:
    """The metric without the target it was measured at: ``latency_ms`` of ``latency_ms/openvino-cpu``."""
    return metric.partition("/")[0]


def _long(metric: str, scoring: Scoring) -> str:
    if metric == scoring.name:
        return SCORE
    name, slash, place = metric.partition("/")
    return _SHORT.get(name, name) + slash + place


def _metric(name: str, metrics: dict[str, float]) -> float:
    if name not in metrics:
        raise unknown_name("metric", name, metrics)
    return metrics[name]


def _unit(unit: str, metric: str, text: str) -> float:
    units = _units_of(base_of(metric))
    for name, factor in units.items():
        if unit.lower() == name.lower():
            return factor
    if not unit:
        return 1.0
    choices = f"one of: {', '.join(units)}" if units else "give a plain number"
    raise InputError(f"limit {text!r}: {metric} has no unit {unit!r} ({choices}); a share of the baseline is '0.5 * baseline'")


def _units_of(metric: str) -> dict[str, float]:
    if metric.endswith("_bytes"):
        return _BYTES
    if metric.endswith("_ms"):
        return _TIMES
    return {} if metric in ("macs", "params") else _SHARES


def _unreadable(text: str) -> InputError:
    return InputError(
        f"cannot read the limit {text!r}; write it like 'accuracy >= baseline - 0.01', 'size <= 100 kB', "
        "'latency <= 0.5 * baseline' or 'size <= baseline / 12'"
    )
