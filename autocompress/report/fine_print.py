"""On what, with what and how everything was measured, how noisy that was, and what was not measured."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath

import numpy as np

from autocompress.front import ParetoFront
from autocompress.objective import SCORE
from autocompress.report.axes import name_of
from autocompress.report.data import show
from autocompress.report.evidence import Evidence
from autocompress.report.landmarks import PLAIN, Landmark
from autocompress.result import Environment, Status, TrialResult

# With fewer a standard deviation says little.
_FEWEST_REPEATS = 5


@dataclass(frozen=True)
class Item:
    """One matter of the fine print: its `name` and a few sentences."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Noise:
    """How far latencies of files of the same shape are apart.

    `deviation` is the standard deviation of their ratio to the uncompressed model's, as a share of it, over `repeats` files
    beyond the first of each shape.
    """

    deviation: float
    repeats: int


def fine_print_of(
    front: ParetoFront, results: Sequence[TrialResult], evidence: Evidence, marks: Sequence[Landmark]
) -> tuple[Item, ...]:
    """In the order of the page. What is not on record is named as such."""
    return (
        Item("Hardware", tuple(_hardware(results))),
        Item("Target", (target_words(evidence),)),
        Item("Versions", (versions_words(results, evidence),)),
        Item("Search", tuple(_search(evidence))),
        Item("Splits", tuple(_splits(front, evidence))),
        Item("Size", ("Bytes of the exported file, on disk as it is delivered.",)),
        Item("Latency", tuple(_latency(front, results, evidence))),
        Item(name_of(SCORE, front.scoring), tuple(_accuracy(front))),
        Item("Not measured", tuple(_not_measured(front, results, evidence, marks))),
    )


def latency_noise(results: Sequence[TrialResult]) -> Noise | None:
    """From trials whose files differ in nothing but the values of their weights; None when there are too few."""
    by_shape: dict[str, list[float]] = {}
    for result in results:
        ratio = result.metrics.get("latency_ratio")
        if result.status is Status.COMPLETE and ratio:
            shape = result.policy.model_dump_json(include={"channel_sparsity", "layers"})
            by_shape.setdefault(shape, []).append(ratio)
    groups = [np.array(ratios) / np.mean(ratios) for ratios in by_shape.values() if len(ratios) > 1]
    repeats = sum(len(group) - 1 for group in groups)
    if repeats < _FEWEST_REPEATS:
        return None
    variance = sum(float(((group - 1) ** 2).sum()) for group in groups) / repeats
    return Noise(deviation=float(np.sqrt(variance)), repeats=repeats)


def _hardware(results: Sequence[TrialResult]) -> Iterable[str]:
    machines = Counter(_machine(result.environment) for result in results if result.environment is not None)
    if not machines:
        yield "Not on record."
    for machine, trials in machines.most_common():
        yield f"{machine}: {trials} trial{'s' if trials > 1 else ''}."


def machines_words(results: Sequence[TrialResult]) -> str:
    """All machines that measured, in one line."""
    machines = {_machine(result.environment) for result in results if result.environment is not None}
    return "; ".join(sorted(machines)) or "not on record"


def settings_words(evidence: Evidence) -> Iterable[str]:
    """Seed and settings of the search."""
    settings = dict(evidence.mlflow.settings) if evidence.mlflow else {}
    if "experiment" in settings:
        settings["experiment"] = PurePath(settings["experiment"]).name
    seed = settings.pop("seed", None)
    yield f"Seed {seed}." if seed else "The seed is not on record."
    if settings:
        yield ", ".join(f"{name} {value}" for name, value in settings.items()) + "."


def _machine(machine: Environment) -> str:
    return f"{machine.cpu}, {machine.cores} cores, {machine.gpu or 'no GPU'}, Python {machine.python}"


def target_words(evidence: Evidence) -> str:
    if evidence.target is None:
        return "Not on record."
    return "; ".join(
        f"{place.runtime} on {place.device}, {place.batch_size} example{'s' if place.batch_size > 1 else ''} at once, "
        f"{place.threads} thread{'s' if place.threads > 1 else ''}"
        for place in evidence.target.each
    )


def versions_words(results: Sequence[TrialResult], evidence: Evidence) -> str:
    found: dict[str, set[str]] = {}
    for versions in (evidence.versions, *(result.environment.versions for result in results if result.environment)):
        for name, number in versions.items():
            found.setdefault(name, set()).add(number)
    return ", ".join(f"{name} {' and '.join(sorted(numbers))}" for name, numbers in sorted(found.items())) or "Not on record."


def _search(evidence: Evidence) -> Iterable[str]:
    if evidence.started is not None:
        yield f"Begun on {datetime.fromtimestamp(evidence.started, UTC):%Y-%m-%d at %H:%M} UTC."
    yield from settings_words(evidence)


def _splits(front: ParetoFront, evidence: Evidence) -> Iterable[str]:
    sizes = dict(evidence.mlflow.datasets) if evidence.mlflow else {}
    if front.baseline_test is not None:
        sizes["test"] = front.baseline_test.examples
    uses = {
        "train": "trained and calibrated on",
        "validation": "every trial is judged by it",
        "test": "scored once, after the search, by no more than the front and the uncompressed model",
    }
    for split, use in uses.items():
        size = f"{sizes[split]:,} examples" if split in sizes else "size not on record"
        yield f"{split}: {size}, {use}."


def _latency(front: ParetoFront, results: Sequence[TrialResult], evidence: Evidence) -> Iterable[str]:
    yield (
        "The file and the uncompressed model's run in turn in one process while nothing else trains on that machine; the ratio "
        "of their least times over several sessions, times the uncompressed model's time at the start "
        f"({show('latency_ms', front.baseline['latency_ms'], front.scoring)})."
    )
    noise = latency_noise(results)
    if noise is None:
        yield "Noise: not measured; too few trials have files of the same shape."
    else:
        yield (
            f"Noise: files of the same shape differ by {noise.deviation:.1%} (one standard deviation over {noise.repeats} "
            "repeats); the error bars of latency show as much."
        )
    beside = [
        result.metrics["latency_measured_ms"] / result.metrics["latency_ratio"]
        for result in results
        if result.metrics.get("latency_ratio") and "latency_measured_ms" in result.metrics
    ]
    if beside:
        low, middle, high = (show("latency_ms", float(np.quantile(beside, q)), front.scoring) for q in (0, 0.5, 1))
        yield (
            f"Beside the trials the uncompressed model took {low} to {high}, {middle} in the middle: that is what ratios "
            "even out."
        )
    if evidence.costs is not None:
        size, time = evidence.costs.size_error, evidence.costs.latency_error
        yield (
            f"Bytes and time of single layers are those of the cost table: whole policies are foretold with a mean error of "
            f"{size.mean:.1%} in size and {time.mean:.1%} in time."
        )


def _accuracy(front: ParetoFront) -> Iterable[str]:
    side = "higher" if front.scoring.goal == "max" else "lower"
    what = "Accuracy" if front.scoring.name == SCORE else f"The task's score ({front.scoring.name}, {side} is better)"
    yield f"{what} of the exported file, on its runtime. Intervals on the test split are 95 % confidence intervals."
    if front.spread:
        yield f"Error bars of {front.scoring.name} are one standard deviation over the seeds."


def _not_measured(
    front: ParetoFront, results: Sequence[TrialResult], evidence: Evidence, marks: Sequence[Landmark]
) -> Iterable[str]:
    if not front.test:
        yield "Test scores."
    elif len(front.test) < len(results):
        yield "Test scores of trials that are not on the front."
    if not front.spread:
        yield f"How much {front.scoring.name} varies with the seed: each model was trained once."
    if not any(mark.models for mark in marks if mark.name == PLAIN):
        yield "Plain 8-bit quantisation of the whole network."
    if not evidence.rivals:
        yield "Other searches with the same compute (`autocompress baseline`)."
    if evidence.costs is None:
        yield "Bytes and time of single layers."
    if evidence.sensitivity is None:
        yield "The sensitivity of single layers."
    if front.further_latencies:
        places = " and ".join(front.further_latencies.values())
        yield f"{name_of(SCORE, front.scoring)} on {places}: a few outputs are compared there."
    yield "Memory and energy in use; latency at other batch sizes and numbers of threads than the target's."
