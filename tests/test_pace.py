"""The time left: foretold on searches whose trials take made-up times, on a clock that is made up too."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from autocompress import search as search_module
from autocompress.experiment import Budget, Experiment
from autocompress.halving import Halving
from autocompress.layer import Layers
from autocompress.pace import Pace
from autocompress.policy import Finetune, LayerPolicy, Policy
from autocompress.refitting import Refit
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked, Search
from autocompress.target import Target
from autocompress.testing import ToyTask
from tests.nets import vgg

LAYERS = vgg()
BASELINE = {"size_bytes": 1e5, "latency_ms": 10.0, "accuracy": 0.9, "macs": 1e6}


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True)
class Moment:
    at: float
    left: float | None


def space(trial: Any, layers: Layers, target: Target) -> Policy:
    share = trial.suggest_float("share", 0.0, 0.75)
    bits = trial.suggest_int("bits", 2, 8)
    steps = trial.suggest_int("steps", 150, 250) if trial.suggest_categorical("trained", [True, False]) else 0
    return Policy(
        channel_sparsity={group.name: share for group in layers.groups},
        layers={layer.name: LayerPolicy(weight_bits=bits, activation_bits=8) for layer in layers},
        finetune=Finetune(steps=steps, learning_rate=trial.suggest_float("rate", 1e-4, 1e-2)),
    )


EXPERIMENT = Experiment(task=ToyTask(), space=space, sampler="random")


def result_of(asked: Asked, draw: random.Random, *, stopped: bool) -> TrialResult:
    """A trial of a few seconds that trains for a while; one that is stopped has its first rung alone."""
    policy = asked.policy
    kept = 1 - float(np.mean(list(policy.channel_sparsity.values()) or [0.0]))
    bits = float(np.mean([layer.weight_bits or 32 for layer in policy.layers.values()] or [32]))
    before, train = draw.uniform(3, 5), 0.0 if stopped else policy.finetune.steps * draw.uniform(0.04, 0.06) * (0.5 + kept)
    accuracy = 0.9 - 0.05 * (1 - kept) - 0.02 / bits - draw.uniform(0, 0.01) + (0.01 if asked.refit_of is not None else 0)
    rungs = (Rung(step=0, accuracy=accuracy - 0.1, seconds=before),)
    if stopped:
        return TrialResult(
            number=asked.number, policy=policy, status=Status.STOPPED, rungs=rungs, seed=0, started=0.0, refit_of=asked.refit_of
        )
    metrics = {"size_bytes": 1e5 * kept * bits / 32, "latency_ms": 10 * kept, "accuracy": accuracy, "macs": 1e6 * kept}
    return TrialResult(
        number=asked.number,
        policy=policy,
        status=Status.COMPLETE,
        metrics=metrics,
        rungs=rungs,
        seed=0,
        started=0.0,
        seconds={"compress": before, "finetune": train},
        refit_of=asked.refit_of,
    )


def simulated(experiment: Experiment, workers: int, patch: Callable[[Clock], None], *, spent: float = 0.0) -> list[Moment]:
    """What `Pace` says after each trial of a whole search on `workers` workers, and the end."""
    clock, draw = Clock(), random.Random(7)
    patch(clock)
    search = Search(experiment, LAYERS, BASELINE, study=InMemoryStorage(), spent=spent)
    pace = Pace(experiment, clock.now, spent=spent)
    clock.now += 8.0  # workers start
    began = clock.now
    running: list[tuple[float, TrialResult]] = []
    told: list[Moment] = []
    while True:
        while len(running) < workers and (asked := search.ask()) is not None:
            pace.started(asked.number, clock.now, refit=asked.refit_of is not None)
            trained = bool(asked.policy.finetune.steps) and asked.refit_of is None
            stopped = trained and experiment.halving is not None and draw.random() < 0.6
            result = result_of(asked, draw, stopped=stopped)
            # On a worker a trial waits a little for the machine to time its file.
            running.append((clock.now + result.compute * draw.uniform(1.0, 1.15), result))
        if not running:
            break
        running.sort(key=lambda one: one[0])
        clock.now, result = running.pop(0)
        pace.finished(result, clock.now)
        search.tell(result)
        told.append(Moment(clock.now - began, pace.seconds_left(clock.now)))
    return told


def off(moments: list[Moment]) -> list[float]:
    """How far off the time left is at each moment after the first quarter, as a share of it.

    In the last quarter, when a few trials are left whose luck nobody can know, as a share of a quarter of the whole.
    """
    end = moments[-1].at
    return [
        abs((moment.left if moment.left is not None else end) - (end - moment.at)) / max(end - moment.at, 0.25 * end)
        for moment in moments
        if moment.at >= end / 4
    ]


@pytest.mark.parametrize(
    ("workers", "budget", "changes"),
    [
        (4, {"trials": 240}, {}),
        (1, {"trials": 240}, {"halving": Halving()}),
        (4, {"trials": 240}, {"halving": Halving(), "refit": Refit()}),
        (1, {"trials": 100}, {"refit": Refit(models=3, steps=300, seeds=2)}),
        (1, {"trials": None, "minutes": 20}, {"halving": Halving()}),
        (1, {"trials": None, "minutes": 30}, {"halving": Halving(), "refit": Refit()}),
        (4, {"trials": None, "worker_seconds": 1500}, {"halving": Halving()}),
        (4, {"trials": None, "worker_seconds": 3000}, {"halving": Halving(), "refit": Refit()}),
        (4, {"trials": 100, "minutes": 60}, {"refit": Refit()}),
        (4, {"trials": 500, "minutes": 10}, {}),
    ],
)
def test_after_the_first_quarter_the_time_left_is_right_within_a_fifth(
    budget: dict[str, Any], changes: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(EXPERIMENT, budget=Budget(**budget), **changes)
    moments = simulated(experiment, workers, lambda clock: monkeypatch.setattr(search_module, "time", clock), spent=30.0)
    assert len(moments) > 50
    wrong = off(moments)
    # Chance has its say too: nine of ten times, and never by far.
    assert sum(share <= 0.2 for share in wrong) >= 0.9 * len(wrong)
    assert max(wrong) < 0.34


def ended(number: int, *, refit_of: int | None = None, steps: int = 100) -> TrialResult:
    """A trial that took two worker-seconds without training, and ten with it."""
    return TrialResult(
        number=number,
        policy=Policy(finetune=Finetune(steps=steps)),
        status=Status.COMPLETE,
        metrics={"macs": 1e6, "accuracy": 0.9},
        seed=0,
        started=0.0,
        seconds={"compress": 2.0, "finetune": 0.08 * steps},
        refit_of=refit_of,
    )


def pace_of(results: list[TrialResult], *, refit: Refit | None = None, before: int = 0, **budget: Any) -> Pace:
    """One trial after another on one worker, each in the ten seconds after the one before; the first began at 100."""
    experiment = replace(EXPERIMENT, budget=Budget(**budget), refit=refit)
    pace = Pace(experiment, 95.0, results[:before], spent=5.0)
    for place, result in enumerate(results[before:]):
        pace.started(result.number, 100.0 + 10 * place, refit=result.refit_of is not None)
        pace.finished(result, 110.0 + 10 * place)
    return pace


def test_nobody_can_tell_before_a_trial_has_finished() -> None:
    pace = pace_of([], trials=8)
    pace.started(0, 100.0, refit=False)
    assert pace.seconds_left(105.0) is None
    assert pace_of([ended(0), ended(1)], before=2, trials=None, worker_seconds=100).seconds_left(120.0) is None
    minutes = pace_of([], trials=None, minutes=1)
    assert minutes.seconds_left(115.0) == 40.0, "but for the clock"


def test_each_part_of_a_budget_ends_it_at_the_pace_so_far() -> None:
    results = [ended(number) for number in range(4)]
    assert pace_of(results, trials=10).seconds_left(140.0) == pytest.approx(60)
    assert pace_of(results, trials=10).seconds_left(143.0) == pytest.approx(60 * 43 / 40), "a worker that idles is slow"
    assert pace_of(results, trials=None, worker_seconds=105).seconds_left(140.0) == pytest.approx(60 + 5), "and half a trial"
    assert pace_of(results, trials=None, minutes=2).seconds_left(140.0) == pytest.approx(95 + 120 - 140 + 5)
    assert pace_of(results, trials=10, minutes=1).seconds_left(140.0) == pytest.approx(20), "whichever is first"
    assert pace_of(results, trials=4).seconds_left(140.0) == 0


def test_a_trial_under_way_is_done_in_part() -> None:
    pace = pace_of([ended(number) for number in range(4)], trials=10)
    pace.started(4, 140.0, refit=False)
    assert pace.seconds_left(146.0) == pytest.approx(54)
    assert pace.seconds_left(170.0) == pytest.approx(50), "one that takes longer than others may end any time"


def test_refits_at_the_end_are_foretold_by_their_steps() -> None:
    refit = Refit(models=2, steps=300)
    pace = pace_of([ended(number) for number in range(4)], refit=refit, trials=5)
    assert pace.seconds_left(140.0) == pytest.approx(10 + 2 * (2 + 0.08 * 300))
    pace.started(4, 140.0, refit=False)
    pace.finished(ended(4), 150.0)
    pace.started(5, 150.0, refit=True)
    assert pace.seconds_left(160.0) == pytest.approx(2 * 26 - 10)
    pace.finished(ended(5, refit_of=0, steps=300), 176.0)
    assert pace.seconds_left(176.0) == pytest.approx(26)


def test_of_a_budget_in_minutes_refits_take_no_more_than_the_rest() -> None:
    pace = pace_of([ended(number) for number in range(4)], refit=Refit(models=8, steps=3000), trials=None, minutes=3)
    assert pace.seconds_left(140.0) == pytest.approx(95 + 180 - 140)


def test_what_earlier_sessions_took_counts_too() -> None:
    pace = pace_of([ended(number) for number in range(6)], before=4, trials=10)
    assert (pace.sampled, pace.used) == (6, 5 + 60)
    assert pace.seconds_left(120.0) == pytest.approx(40)
    assert pace.share(120.0) == 0.6
