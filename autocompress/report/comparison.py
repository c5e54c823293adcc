"""Several runs side by side: what each recommends, what it came to, and whether their numbers can be compared at all."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autocompress.errors import InputError
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront, hypervolume
from autocompress.objective import SCORE, Objective, Scoring
from autocompress.report.data import counts_words, show
from autocompress.report.decision import NEAREST, Choice, choice_of
from autocompress.report.evidence import Evidence, evidence_of
from autocompress.report.fine_print import machines_words, settings_words, target_words, versions_words
from autocompress.result import TrialResult

_UNKNOWN = "not on record"


@dataclass(frozen=True)
class Contender:
    """One run of a comparison by its `name`; `weights` is a digest of its uncompressed model, None when that is gone."""

    name: str
    folder: RunFolder
    front: ParetoFront
    results: tuple[TrialResult, ...]
    evidence: Evidence
    weights: str | None

    @property
    def picked(self) -> TrialResult | None:
        """What it recommends; where nothing meets its limits, what is nearest to them."""
        return self.front.recommended() or next(iter(self.front.nearest), None)

    @property
    def pick(self) -> Choice | None:
        picked = self.picked
        if picked is None:
            return None
        role = "recommended" if self.front.members else NEAREST
        return choice_of(role, picked, self.front, self.folder)

    @property
    def counts(self) -> str:
        return counts_words(self.results)

    @property
    def worker_seconds(self) -> float:
        return self.evidence.preparation + sum(result.compute for result in self.results)


@dataclass(frozen=True)
class Difference:
    """A matter in which the runs differ: what it is in each of them, and what follows from it (None: nothing bad)."""

    matter: str
    values: tuple[str, ...]
    consequence: str | None = None


@dataclass(frozen=True)
class Comparison:
    """`differences` are told, the grave ones first; `volumes` are hypervolumes, judged as `reference` says in words."""

    contenders: tuple[Contender, ...]
    differences: tuple[Difference, ...]
    objectives: tuple[Objective, ...]
    volumes: tuple[float | None, ...]
    reference: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """What cannot be compared, and why, each in a sentence."""
        return tuple(difference.consequence for difference in self.differences if difference.consequence)


def contender_of(folder: RunFolder, name: str, front: ParetoFront) -> Contender:
    weights = folder.baseline / "weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12] if weights.is_file() else None
    return Contender(name, folder, front, tuple(folder.results()), evidence_of(folder), digest)


def comparison_of(contenders: Sequence[Contender]) -> Comparison:
    """Raises `InputError` when there are fewer than two, or when they share no objective."""
    if len(contenders) < 2:
        raise InputError("a comparison needs two runs or more")
    fronts = [one.front for one in contenders]
    common = tuple(objective for objective in fronts[0].objectives if all(objective in front.objectives for front in fronts))
    if not common:
        raise InputError("these runs cannot be compared: they have no objective in common")
    differences = _differences(contenders)
    comparable = not any(difference.consequence for difference in differences)
    volumes, reference = _volumes(contenders, common, comparable=comparable)
    return Comparison(tuple(contenders), differences, common, volumes, reference)


def common_reference(fronts: Sequence[ParetoFront], objectives: Sequence[Objective]) -> dict[str, float]:
    """A corner in which no run is favoured: the largest size and time, and the best score, of their uncompressed models."""
    return {
        one.metric: (max if one.is_cost or one.goal == "max" else min)(front.baseline[one.metric] for front in fronts)
        for one in objectives
    }


def _volumes(
    contenders: Sequence[Contender], objectives: Sequence[Objective], *, comparable: bool
) -> tuple[tuple[float | None, ...], str]:
    judged_by = ", ".join(objective.metric for objective in objectives)
    if not comparable:
        own = tuple(hypervolume([m.metrics for m in one.front.members], objectives, one.front.baseline) for one in contenders)
        return own, f"{judged_by}; each against its own uncompressed model, since their figures cannot be compared"
    base = common_reference([one.front for one in contenders], objectives)
    volumes = tuple(hypervolume([m.metrics for m in one.front.members], objectives, base) for one in contenders)
    corner = ", ".join(show(name, value, contenders[0].front.scoring) for name, value in base.items())
    return volumes, f"{judged_by}; one reference for all: {corner}"


def _differences(contenders: Sequence[Contender]) -> tuple[Difference, ...]:
    graves: list[tuple[str, Callable[[Contender], str], str]] = [
        (
            "Score",
            lambda one: _score_words(one.front.scoring),
            "The scores are of different kinds: they cannot be compared.",
        ),
        (
            "Data",
            _data,
            "The runs were judged on different data: their scores cannot be compared.",
        ),
        (
            "Test split",
            _test_split,
            "The runs were tested on splits of different sizes: their test scores cannot be compared.",
        ),
        (
            "Hardware",
            lambda one: machines_words(one.results),
            "The runs were measured on different hardware: times in milliseconds cannot be compared, and times against the "
            "uncompressed model only with care.",
        ),
        (
            "Target",
            lambda one: target_words(one.evidence),
            "The runs are for different targets: sizes and times are those of different runtimes or settings.",
        ),
        (
            "Uncompressed model",
            _model,
            "The runs began with different networks: ratios and points lost are against different models.",
        ),
    ]
    mild: list[tuple[str, Callable[[Contender], str]]] = [
        ("Objectives", lambda one: ", ".join(objective.metric for objective in one.front.objectives)),
        ("Limits", lambda one: ", ".join(limit.text for limit in one.front.limits) or "none"),
        ("Trials", lambda one: one.counts),
        ("Compute", lambda one: f"{one.worker_seconds:,.0f} worker-seconds"),
        ("Search", lambda one: " ".join(settings_words(one.evidence))),
        ("Versions", lambda one: versions_words(one.results, one.evidence)),
    ]
    found = [_difference(contenders, matter, of, why) for matter, of, why in graves]
    found += [_difference(contenders, matter, of, None) for matter, of in mild]
    return tuple(difference for difference in found if difference is not None)


def _difference(
    contenders: Sequence[Contender], matter: str, of: Callable[[Contender], str], consequence: str | None
) -> Difference | None:
    values = tuple(of(one) for one in contenders)
    known = {value for value in values if not value.lower().startswith(_UNKNOWN)}
    return Difference(matter, values, consequence) if len(known) > 1 else None


def _score_words(scoring: Scoring) -> str:
    side = "higher" if scoring.goal == "max" else "lower"
    return f"{scoring.name}, {'a share' if scoring.share else 'a number'}, {side} is better"


def _data(one: Contender) -> str:
    """The sizes of the splits, and a digest of what is in them."""
    known = one.evidence.mlflow
    if known is None or not known.datasets:
        return _UNKNOWN
    return ", ".join(
        f"{split} {size:,}{f' ({known.digests[split]})' if split in known.digests else ''}"
        for split, size in sorted(known.datasets.items())
    )


def _test_split(one: Contender) -> str:
    test = one.front.baseline_test
    return _UNKNOWN if test is None else f"{test.examples:,} examples"


def _model(one: Contender) -> str:
    base, scoring = one.front.baseline, one.front.scoring
    figures = ", ".join(show(name, base[name], scoring) for name in ("size_bytes", SCORE))
    return f"{figures} ({one.weights})" if one.weights else figures
