"""Delivers a pick from a run: the file to deploy, its policy, what it claims, and how to use it."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from autocompress.errors import ExportError, InputError, RunFolderError, UnknownNameError, unknown_name
from autocompress.experiment import Experiment
from autocompress.folder import write_whole
from autocompress.front import ParetoFront, Pick
from autocompress.measure import Here, download_bytes, test_score
from autocompress.model_card import model_card
from autocompress.objective import SCORE
from autocompress.opened import Run
from autocompress.result import Status, TrialResult
from autocompress.runtimes import Runtime, file_name, runtime_of
from autocompress.target import Target
from autocompress.trial_files import read_trial_file, sha256_of
from autocompress.verify import CLAIMS, POLICY, README, Claims, look_into

_PICKS: tuple[Pick, ...] = get_args(Pick)


def export(run: Run, pick: str, into: Path, *, max_drop: float | None, target: str | None = None) -> TrialResult:
    """Writes the picked trial's file, policy, claims and card into the folder `into`, and returns the trial.

    `pick` is "knee", "smallest", "fastest" or "best" of the front, or the number of any complete trial. `max_drop`
    leaves out members whose score is more than that worse than the uncompressed model's; None is as
    `ParetoFront.pick` says. `target` names one of those that were searched for, at which the fastest is the fastest; None is
    the first. Raises `InputError`.
    """
    front, experiment = run.front(), run.experiment()
    place = _place(experiment.target, target)
    latency = experiment.target.metric("latency_ms", place)
    result = choose(front, run.folder.results(), pick, max_drop=max_drop, latency=latency)
    runtime = runtime_of(place)
    model = _content(run, result, file_name(experiment.target, place), runtime)
    _make(into)
    claims = _claims(run, front, result, model, experiment, place)
    try:
        inputs = runtime.load(model, place).inputs
    except ExportError as error:
        raise RunFolderError(f"{run.folder.path} is damaged: the file of trial {result.number}: {error}") from error
    card = model_card(run, front, result, claims, inputs)
    # Links of an earlier export are replaced, not followed.
    write_whole(into / runtime.file, model)
    write_whole(into / POLICY, result.policy.to_json(indent=1))
    write_whole(into / README, card)
    # Last: with its claims in place the folder counts as an exported model.
    write_whole(into / CLAIMS, claims.to_json(indent=1))
    return result


def choose(
    front: ParetoFront,
    results: Sequence[TrialResult],
    pick: str,
    *,
    max_drop: float | None,
    latency: str = "latency_ms",
) -> TrialResult:
    """The trial that `pick` names; see `export` and `ParetoFront.pick`. Raises `InputError` that says what is there to pick."""
    if re.fullmatch(r"\d+", pick):
        return _by_number(results, int(pick))
    named: dict[str, Pick] = {name: name for name in _PICKS}
    if pick not in named:
        raise unknown_name("pick", pick, [*_PICKS, "a trial number"])
    chosen = front.pick(named[pick], max_drop=max_drop, latency=latency)
    if chosen is None:
        raise InputError(_nothing_to_pick(front, max_drop))
    return chosen


def _place(target: Target, name: str | None) -> Target:
    if name is None:
        return target.alone
    wanted = Target.parse(name)
    if wanted not in target.each:
        raise unknown_name("target of this run", wanted.name, [place.name for place in target.each])
    return wanted


def _by_number(results: Sequence[TrialResult], number: int) -> TrialResult:
    by_number = {result.number: result for result in results}
    if number not in by_number:
        complete = [result.number for result in results if result.status is Status.COMPLETE]
        nearest = f"; did you mean {min(complete, key=lambda one: abs(one - number))}?" if complete else ""
        listed = ", ".join(map(str, complete)) or "none"
        raise UnknownNameError(f"no trial {number} in this run; its complete trials are {listed}{nearest}")
    result = by_number[number]
    if result.status is not Status.COMPLETE:
        raise InputError(f"trial {number} has no model: it {result.status} ({result.error or 'ended early'})")
    return result


def _nothing_to_pick(front: ParetoFront, max_drop: float | None) -> str:
    if front.members and max_drop is not None:
        best, words = min(front.members, key=front.drop), front.scoring.words
        return (
            f"no model on the front is within {max_drop:g} of the uncompressed {words(front.baseline[SCORE])}; the nearest is "
            f"trial {best.number} with {words(best.metrics[SCORE])}: give --max-drop {_rounded_up(front.drop(best))}"
        )
    limits = " and ".join(limit.text for limit in front.limits) or "no limits"
    if front.nearest:
        near = ", ".join(str(result.number) for result in front.nearest)
        return (
            f"no trial meets {limits}; the nearest are {near}: export one by its number, e.g. --pick {front.nearest[0].number}"
        )
    return "no trial is complete yet: there is nothing to export"


def _rounded_up(drop: float) -> str:
    """A little more, in few digits, whatever the score's unit is."""
    unit = 10.0 ** (math.floor(math.log10(max(drop, 1e-4))) - 2)
    return f"{math.ceil(drop / unit) * unit:.6g}"


def _content(run: Run, result: TrialResult, name: str, runtime: Runtime) -> bytes:
    content = read_trial_file(run.folder, result, name)
    look_into(run.folder.artifacts.where(result.number, name), content, runtime)
    return content


def _make(into: Path) -> None:
    try:
        into.mkdir(parents=True, exist_ok=True)
        if any(into.iterdir()) and not (into / CLAIMS).exists():
            raise InputError(f"{into} holds other files; choose a new folder with -o")
        (into / CLAIMS).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {into}: {error.strerror}; choose another folder with -o") from error


def _claims(run: Run, front: ParetoFront, result: TrialResult, model: bytes, experiment: Experiment, place: Target) -> Claims:
    whole, there = experiment.target, Here(place)
    score, uncompressed = front.test.get(result.number), front.baseline_test
    if place != whole.alone:
        baseline = (run.folder.baseline / file_name(whole, place)).read_bytes()
        score, uncompressed = None, test_score(baseline, experiment.task, there)
    time = whole.metric("latency_ms", place)
    return Claims(
        trial=result.number,
        run=str(run.folder.path),
        sha256=sha256_of(model),
        size_bytes=len(model),
        download_bytes=download_bytes(model),
        scoring=experiment.task.scoring,
        accuracy=score or test_score(model, experiment.task, there),
        validation_accuracy=result.metrics[SCORE],
        latency_ms=result.metrics[time],
        latency_ratio=result.metrics[whole.metric("latency_ratio", place)],
        baseline_size_bytes=int(front.baseline[whole.metric("size_bytes", place)]),
        baseline_latency_ms=front.baseline[time],
        baseline_accuracy=uncompressed,
        target=place,
        environment=result.environment,
    )
