"""How small and fast do the CIFAR-10 networks get? One trained trial for each goal of the project, measured on test data.

    CIFAR10_DIR=data python benchmarks/goals.py                     (all goals, two hours on one core)
    CIFAR10_DIR=data python benchmarks/goals.py "resnet20 120 kB" --steps 1400
    CIFAR10_DIR=data python benchmarks/goals.py vgg16 --run runs/models/vgg16

Each goal is handed to the solver as a size or a time, and the one policy that it gives is compressed, repaired and fine-tuned
with the uncompressed model as teacher: there is no search. What is printed is measured on the exported file: its bytes, its
time beside the uncompressed float file's in interleaved runs, and its accuracy on test images that neither training nor the
solver nor the choice of the best rung has seen. With `--run` the uncompressed network, its sensitivities and its costs are
those of a run, such as `benchmarks/models.py` leaves: VGG16 is trained from scratch otherwise. Of ResNet-20 the best file of
another tool that can be deployed has 302,491 bytes at 87.0 %.
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

from autocompress.baseline import Baseline, Data, load_data
from autocompress.front import TestScore
from autocompress.measure import Here, test_score
from autocompress.opened import open_run
from autocompress.policy import Distill, Finetune, Policy
from autocompress.prior import Prior
from autocompress.profile import profile
from autocompress.result import Rung, TrialResult
from autocompress.sensitivity import cache_folder, divergences_of, sense
from autocompress.tables import CostTable, Sensitivity
from autocompress.task import Task
from autocompress.trial import run_trial


@dataclass(frozen=True)
class Goal:
    """A file of so many bytes at most, or so many times smaller or faster than the float file, that loses at most `points`."""

    case: str
    points: float
    size_bytes: float | None = None
    times_smaller: float | None = None
    times_faster: float | None = None

    def bytes(self, baseline: Baseline) -> float | None:
        if self.times_smaller is None:
            return self.size_bytes
        return baseline.metrics["size_bytes"] / self.times_smaller


GOALS = {
    "resnet20 120 kB": Goal("cifar10_resnet20", points=0.5, size_bytes=120_000),
    "resnet20 80 kB": Goal("cifar10_resnet20", points=2.0, size_bytes=80_000),
    "resnet20 2.8x faster": Goal("cifar10_resnet20", points=1.0, times_faster=2.8),
    "vgg16": Goal("cifar10_vgg16", points=1.0, times_smaller=30, times_faster=6),
}


@dataclass(frozen=True)
class Case:
    """An experiment's task, data and uncompressed network, and what the solver knows of it."""

    task: Task
    data: Data
    baseline: Baseline
    prior: Prior


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(GOALS)))
@click.option("--steps", default=1400, show_default=True, help="Of fine-tuning, 64 images each; an epoch has about 300.")
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--run", type=click.Path(path_type=Path), help="The folder of a run of that network.")
def main(*, names: tuple[str, ...], steps: int, learning_rate: float, seed: int, run: Path | None) -> None:
    """Measure what comes of one or more goals."""
    torch.set_num_threads(1)
    print_machine()
    wanted = {name: GOALS[name] for name in names or GOALS}
    cases = dict.fromkeys(goal.case for goal in wanted.values())
    if run is not None and len(cases) > 1:
        raise click.UsageError(f"a run is of one network: name goals of one of {', '.join(cases)}")
    finetune, distill = Finetune(steps=steps, learning_rate=learning_rate), Distill(temperature=4.0, share=0.7)
    for at in cases:
        case = measured(at) if run is None else of_run(run)
        baseline = case.baseline
        uncompressed = test_score(baseline.file, case.task, Here(baseline.target.alone))
        print(f"{at}, uncompressed: {len(baseline.file):,} bytes, {uncompressed.accuracy:.2%} on test", flush=True)
        for name, goal in wanted.items():
            if goal.case == at:
                policy = policy_for(goal, case.prior, baseline)
                policy = policy.model_copy(update={"finetune": finetune, "distill": distill})
                result, test = trained(name, policy, case, seed=seed)
                print(f"{name}: {judged(goal, baseline, result, test, uncompressed)}", flush=True)


def measured(name: str) -> Case:
    """The case of an experiment, with everything measured now."""
    task, data, baseline = opened(name)
    sensitivity = sense(
        task, baseline, data, spread=lambda options: divergences_of(options, task, baseline, data), cache=cache_folder()
    )
    costs = profile(task, baseline, data, policies=8)
    return Case(task, data, baseline, Prior(baseline.layers, baseline.target, sensitivity, costs, baseline=baseline.metrics))


def of_run(folder: Path) -> Case:
    """The case of a run, as it was measured there, on its first target."""
    run = open_run(folder)
    task, baseline = run.experiment().task, run.baseline()
    sensitivity = Sensitivity.from_json(run.folder.sensitivity.read_bytes(), source=run.folder.sensitivity.name)
    costs = CostTable.from_json(run.folder.costs.read_bytes(), source=run.folder.costs.name)
    prior = Prior(baseline.layers, baseline.target, sensitivity, costs, baseline=baseline.metrics)
    return Case(task, load_data(task), baseline, prior)


def policy_for(goal: Goal, prior: Prior, baseline: Baseline) -> Policy:
    """A little within the goal: predicted bytes are off by a fifth of a per cent, times by several per cent."""
    bytes_ = goal.bytes(baseline)
    size = None if bytes_ is None else 0.99 * bytes_
    ms = None if goal.times_faster is None else 0.93 * baseline.metrics["latency_ms"] / goal.times_faster
    return prior.solve(size, ms)


def trained(name: str, policy: Policy, case: Case, *, seed: int) -> tuple[TrialResult, TestScore | None]:
    """What came of the trial, and how its file scores on the test split; None when the trial failed."""

    def progress(rung: Rung) -> bool:
        print(f"{name}: step {rung.step}, {rung.accuracy:.2%} on validation", flush=True)
        return True

    baseline, target = case.baseline, case.baseline.target.alone
    with tempfile.TemporaryDirectory() as folder:
        result = run_trial(
            policy.canonical(baseline.layers, target.menu),
            case.task,
            target,
            progress,
            baseline=baseline,
            data=case.data,
            number=0,
            seed=seed,
            folder=Path(folder),
            rungs=(0.0, 0.25, 0.5, 0.75, 1.0),
        )
        file = Path(folder) / "model.onnx"
        return result, test_score(file.read_bytes(), case.task, Here(target)) if file.exists() else None


def judged(goal: Goal, baseline: Baseline, result: TrialResult, test: TestScore | None, uncompressed: TestScore) -> str:
    """The result in words, and whether it meets the goal."""
    if test is None:
        return str(result.error)
    lost = 100 * (uncompressed.accuracy - test.accuracy)
    size, faster, wanted = result.metrics["size_bytes"], 1 / result.metrics["latency_ratio"], goal.bytes(baseline)
    is_small = wanted is None or size <= wanted
    is_fast = goal.times_faster is None or faster >= goal.times_faster
    return (
        f"{size:,.0f} bytes ({baseline.metrics['size_bytes'] / size:.1f}x smaller), {faster:.2f}x faster, "
        f"{test.accuracy:.2%} on test ({test.low:.1%} to {test.high:.1%}), "
        f"{lost:+.2f} points lost of {goal.points:g} allowed: "
        f"{'met' if is_small and is_fast and lost <= goal.points else 'MISSED'}   [{result.summary}]"
    )


if __name__ == "__main__":
    main()
