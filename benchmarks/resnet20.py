"""How small and fast does CIFAR-10 ResNet-20 get? One trained trial for each goal of the project, measured on test data.

    CIFAR10_DIR=data python benchmarks/resnet20.py                     (all goals, about an hour on one core)
    CIFAR10_DIR=data python benchmarks/resnet20.py "120 kB" --steps 1400

Each goal is handed to the solver as a size or a time, and the one policy that it gives is compressed, repaired and fine-tuned
with the uncompressed model as teacher: there is no search. What is printed is measured on the exported file: its bytes, its
time beside the uncompressed float file's in interleaved runs, and its accuracy on 3,000 test images that neither training nor
the solver nor the choice of the best rung has seen. The best file of another tool that can be deployed has 302,491 bytes at
87.0 %.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import torch
from cases import opened
from printing import print_machine

from autocompress.baseline import Baseline, Data
from autocompress.front import TestScore
from autocompress.measure import Here, test_score
from autocompress.policy import Distill, Finetune, Policy
from autocompress.prior import Prior
from autocompress.profile import profile
from autocompress.result import Rung, TrialResult
from autocompress.sensitivity import cache_folder, divergences_of, sense
from autocompress.task import Task
from autocompress.trial import run_trial


@dataclass(frozen=True)
class Goal:
    """A file of at most so many bytes, or so many times faster than the float file, that loses at most so many points."""

    points: float
    size_bytes: float | None = None
    times_faster: float | None = None


GOALS = {
    "120 kB": Goal(points=0.5, size_bytes=120_000),
    "80 kB": Goal(points=2.0, size_bytes=80_000),
    "2.8x faster": Goal(points=1.0, times_faster=2.8),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(GOALS)))
@click.option("--steps", default=1400, show_default=True, help="Of fine-tuning, 64 images each; an epoch has 312.")
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(*, names: tuple[str, ...], steps: int, learning_rate: float, seed: int) -> None:
    """Measure what comes of one or more goals."""
    torch.set_num_threads(1)
    print_machine()
    task, data, baseline = opened("cifar10_resnet20")
    target = baseline.target
    uncompressed = test_score(baseline.file, task, Here(target))
    print(f"uncompressed: {len(baseline.file):,} bytes, {uncompressed.accuracy:.2%} on test", flush=True)
    sensitivity = sense(
        task, baseline, data, spread=lambda options: divergences_of(options, task, baseline, data), cache=cache_folder()
    )
    prior = Prior(baseline.layers, target, sensitivity, profile(task, baseline, data, policies=8), baseline=baseline.metrics)
    for name in names or GOALS:
        policy = policy_for(GOALS[name], prior, baseline).model_copy(
            update={
                "finetune": Finetune(steps=steps, learning_rate=learning_rate),
                "distill": Distill(temperature=4.0, share=0.7),
            }
        )
        result, test = trained(name, policy, task, baseline, data, seed=seed)
        print(f"{name}: {judged(GOALS[name], result, test, uncompressed)}", flush=True)


def policy_for(goal: Goal, prior: Prior, baseline: Baseline) -> Policy:
    """A little within the goal: predicted bytes are off by a fifth of a per cent, times by a few per cent."""
    size = None if goal.size_bytes is None else 0.99 * goal.size_bytes
    ms = None if goal.times_faster is None else 0.96 * baseline.metrics["latency_ms"] / goal.times_faster
    return prior.solve(size, ms)


def trained(
    name: str, policy: Policy, task: Task, baseline: Baseline, data: Data, *, seed: int
) -> tuple[TrialResult, TestScore | None]:
    """What came of the trial, and how its file scores on the test split; None when the trial failed."""

    def progress(rung: Rung) -> bool:
        print(f"{name}: step {rung.step}, {rung.accuracy:.2%} on validation", flush=True)
        return True

    with tempfile.TemporaryDirectory() as folder:
        result = run_trial(
            policy.canonical(baseline.layers, baseline.target.menu),
            task,
            baseline.target,
            progress,
            baseline=baseline,
            data=data,
            number=0,
            seed=seed,
            folder=Path(folder),
            rungs=(0.0, 0.25, 0.5, 0.75, 1.0),
        )
        file = Path(folder) / "model.onnx"
        return result, test_score(file.read_bytes(), task, Here(baseline.target)) if file.exists() else None


def judged(goal: Goal, result: TrialResult, test: TestScore | None, uncompressed: TestScore) -> str:
    """The result in words, and whether it meets the goal."""
    if test is None:
        return str(result.error)
    lost = 100 * (uncompressed.accuracy - test.accuracy)
    size, faster = result.metrics["size_bytes"], 1 / result.metrics["latency_ratio"]
    is_small = goal.size_bytes is None or size <= goal.size_bytes
    is_fast = goal.times_faster is None or faster >= goal.times_faster
    return (
        f"{size:,.0f} bytes, {faster:.2f}x faster, {test.accuracy:.2%} on test ({test.low:.1%} to {test.high:.1%}), "
        f"{lost:+.2f} points lost of {goal.points:g} allowed: "
        f"{'met' if is_small and is_fast and lost <= goal.points else 'MISSED'}   [{result.summary}]"
    )


if __name__ == "__main__":
    main()
