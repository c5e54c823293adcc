"""Which finished trial is most worth further training, how it is trained then, and what that takes."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from autocompress.errors import ExperimentError
from autocompress.front import ParetoFront, hypervolume, missed, non_dominated
from autocompress.objective import USUAL, Limit, Objective, Scoring
from autocompress.policy import Finetune, Policy
from autocompress.result import Status, TrialResult

# Further training wins back about half of what compression has lost.
_WON_BACK = 0.5
# Besides the front so many of the latest: more candidates cost time and hardly ever differ from better ones.
_CANDIDATES = 200
# A reference is so much worse than the worst, so that that has a hypervolume too.
_BEYOND = 1.01
# How many times longer than its trial a refit trains, where there is time for that.
_TIMES = 4


@dataclass(frozen=True)
class Refit:
    """Further training of the best models, warm from their checkpoints.

    Up to `models` of them when the sampling is over, the members of the front first, then those nearest to it, each for
    `steps` more steps and with `seeds` seeds. None: four times as many as its trial had (or as the longest where it had
    none), or fewer, down to as many as that, where they would take more than one model's part of the time that is kept.
    Of a budget in minutes or worker-seconds the `share` is kept for it, and refits have that share of the sampling too; of
    trials none is, and refits come last.
    """

    models: int = 8
    steps: int | None = None
    seeds: int = 1
    share: float = 0.4

    def __post_init__(self) -> None:
        if self.models < 1 or self.seeds < 1 or (self.steps is not None and self.steps < 1):
            raise ExperimentError(f"a refit needs at least 1 model, step and seed, given {self}")
        if not 0 < self.share < 1:
            raise ExperimentError(f"a refit's share of the budget must be between 0 and 1, given {self.share}")


def next_to_refit(
    results: Sequence[TrialResult],
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    baseline: dict[str, float],
    *,
    taken: Collection[int],
    scoring: Scoring = USUAL,
) -> TrialResult | None:
    """The complete trial that would add most to the hypervolume if it won back half of what it has lost in score.

    Those in `taken` (numbers) are counted as if they had done so already, so that the next is not just like the last.
    Where no model is better than the uncompressed one in everything but the score, such as on a target that none is quicker
    on, they are measured by the worst of them. None when nothing is left that would add anything.
    """
    complete = [result for result in results if result.status is Status.COMPLETE]
    known = [result.metrics for result in complete if not missed(result.metrics, limits, baseline)]
    known += [hoped(result, objectives, baseline) for result in complete if result.number in taken]
    known = non_dominated(known, objectives)  # what is dominated adds nothing, and of it there may be thousands
    front = {member.number for member in ParetoFront.of(results, objectives, limits, baseline, scoring).members}
    candidates = [result for result in complete if result.refit_of is None and result.number not in taken]
    oldest = max(0, len(candidates) - _CANDIDATES)
    latest = [result for place, result in enumerate(candidates) if place >= oldest or result.number in front]
    hopes = [(result, hoped(result, objectives, baseline)) for result in latest]
    hopes = [(result, metrics) for result, metrics in hopes if not missed(metrics, limits, baseline)]
    reference = _reference([*known, *(metrics for _, metrics in hopes)], objectives, baseline)
    best, most = None, hypervolume(known, objectives, reference) + 1e-9
    for result, metrics in hopes:
        volume = hypervolume([*known, metrics], objectives, reference)
        if volume > most:
            best, most = result, volume
    return best


def _reference(
    points: Sequence[dict[str, float]], objectives: Sequence[Objective], baseline: dict[str, float]
) -> dict[str, float]:
    """The uncompressed model or, where none of the points has a hypervolume beside it, what is worse than all of them."""
    if hypervolume(points, objectives, baseline):
        return baseline
    worst = {one.metric: max((point[one.metric] for point in points), default=0.0) for one in objectives if one.is_cost}
    return {**baseline, **{metric: max(_BEYOND * value, baseline[metric]) for metric, value in worst.items()}}


def trains(policy: Policy, refit_of: int | None) -> bool:
    """Whether a trial is sampled, and fine-tuned."""
    return refit_of is None and policy.finetune.steps > 0


def trained_steps(like: Policy, results: Sequence[TrialResult], *, usual: int) -> int:
    """How long a trial trains that was to be `like` this.

    Where it was to have no training at all, as long as the longest, or as is `usual` in its space when there is none.
    """
    longest = max((one.policy.finetune.steps for one in results if one.refit_of is None), default=0)
    return like.finetune.steps or longest or usual or Finetune().steps


def wanted_steps(refit: Refit, parent: TrialResult, trained: int, results: Sequence[TrialResult], seconds: float | None) -> int:
    """For how many steps `parent` is trained further when a trial trains for `trained` of them.

    `seconds` is the worker-seconds that the search has in all (None: no bound).
    """
    if refit.steps is not None:
        return refit.steps
    a_step = seconds_a_step(parent, results)
    if seconds is None:
        return _TIMES * trained
    part = refit.share * seconds / (refit.models * refit.seeds)
    # Before anything was trained nobody knows what it takes.
    within = int(max(0.0, part - compute_without_training(parent)) / a_step) if a_step else trained
    return min(_TIMES * trained, max(trained, within))


def compute_without_training(parent: TrialResult) -> float:
    """The worker-seconds in which `parent` was compressed, exported and measured."""
    return parent.compute - parent.seconds.get("finetune", 0.0)


def seconds_a_step(parent: TrialResult, results: Sequence[TrialResult]) -> float:
    """Of the trial itself; where it has taken none, of the one that is nearest to it in size. 0 when none was trained."""

    def own(result: TrialResult) -> float:
        return result.seconds.get("finetune", 0.0) / result.policy.finetune.steps

    def times_larger(result: TrialResult) -> float:
        return max(parent.metrics.get("macs", 0.0), 1.0) / max(result.metrics.get("macs", 0.0), 1.0)

    if parent.policy.finetune.steps:
        return own(parent)
    trained = [one for one in results if one.status is Status.COMPLETE and one.policy.finetune.steps]
    nearest = min(trained, key=lambda result: abs(math.log(times_larger(result))), default=None)
    return 0.0 if nearest is None else own(nearest) * times_larger(nearest)


def hoped(result: TrialResult, objectives: Sequence[Objective], baseline: dict[str, float]) -> dict[str, float]:
    """The metrics of a complete result, with half of what it has lost in score won back by further training."""
    metrics = dict(result.metrics)
    for objective in objectives:
        name = objective.metric
        if not objective.is_cost and objective.better(baseline[name], metrics[name]):
            metrics[name] += _WON_BACK * (baseline[name] - metrics[name])
    return metrics
