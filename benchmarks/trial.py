"""How fast is a trial? Its fine-tuning against a bare loop, quantisation-aware against float, and where its time goes.

    CIFAR10_DIR=data python benchmarks/trial.py       (about four minutes; without CIFAR10_DIR the MNIST case alone)

For the MNIST VGG and the CIFAR-10 ResNet-20, whole and with half of its channels. All variants of a table take their
steps in turn, in one thread of one process, and are timed by the CPU time of that thread, least of all rounds: what else
runs on the machine hardly counts. The goals are those of the project.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any

# Before torch is loaded; two threads are asked for where they are measured.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from printing import print_goal, print_machine
from torch import Tensor, nn

from autocompress.baseline import Baseline, Data, as_tensors, load_data, make_baseline
from autocompress.compress import compress
from autocompress.distill import Answer, Teacher, distilled_loss
from autocompress.experiment import load_experiment
from autocompress.fast import in_fast_layout
from autocompress.finetune import evaluate, training_steps
from autocompress.lane import Lane
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.target import Target
from autocompress.task import Task
from autocompress.trial import run_trial

ROOT = Path(__file__).resolve().parent.parent
CASES = {"MNIST VGG": "mnist_vgg", "CIFAR-10 ResNet-20": "cifar10_resnet20"}
ROUNDS = {"MNIST VGG": 20, "CIFAR-10 ResNet-20": 10}
# For the accuracy in half precision: steps, and seeds.
STEPS, SEEDS = 50, 3
TRAIN, VALIDATION = 3000, 1000
BATCH = 64
SECONDS = 60

Steps = Iterator[Any]


@dataclass(frozen=True)
class Case:
    """A task with its uncompressed model; `data` holds as much of the splits as the benchmark needs."""

    name: str
    task: Task
    baseline: Baseline
    data: Data

    def policy(self, *, bits: int | None = None, share: float = 0.0, distill: Distill | None = None) -> Policy:
        """`bits` for all weights and 8 for all activations (None: float), the `share` of all channels removed."""
        quantised = LayerPolicy(weight_bits=bits, activation_bits=8 if bits else None)
        policy = Policy(
            channel_sparsity={group.name: share for group in self.baseline.layers.groups},
            layers={layer.name: quantised for layer in self.baseline.layers} if bits else {},
            finetune=Finetune(steps=1000, batch_size=BATCH),
            distill=distill,
        )
        return policy.canonical(self.baseline.layers, Target().menu)

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return as_tensors(self.data["train"])

    def student(self, policy: Policy) -> nn.Module:
        """As a trial makes it, but for the repair of its weights, in the layout of a trial."""
        inputs, _ = self.train
        student = compress(self.baseline.model(self.task), policy.model_copy(update={"repair": False}), inputs[:256])
        return in_fast_layout(student, inputs[:8])

    def ours(self, policy: Policy, teacher: Teacher, *, student: nn.Module | None = None, seed: int = 0) -> Steps:
        """The steps of a trial."""
        student = student or self.student(policy)
        return training_steps(student, policy, self.task, teacher, self.train, seed=seed, lane=Lane())

    def teacher(self, kind: type[Teacher] = Teacher) -> Teacher:
        return kind(self.baseline.model(self.task), self.baseline.layers.ends[1])


def load_task(name: str) -> Task:
    return load_experiment(ROOT / "experiments" / f"{CASES[name]}.py").task


def some_of(data: Data) -> Data:
    (inputs, targets), (others, goals) = data["train"], data["validation"]
    return {"train": (inputs[:TRAIN], targets[:TRAIN]), "validation": (others[:VALIDATION], goals[:VALIDATION])}


class Exact(Teacher):
    """Keeps itself and its students in float32, and itself in the usual layout."""

    def precision(self, inputs: Tensor) -> Callable[[], AbstractContextManager[Any]]:
        return nullcontext

    def answer(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs: Tensor = self.model(batch)
        return outputs, outputs


class Forgetful(Teacher):
    """Computes what it has said before."""

    def remember(self, inputs: Tensor, *, hints: bool, lane: Lane) -> bool:
        return False


def bare_loop(case: Case, policy: Policy, student: nn.Module, teacher: Teacher, *, half: bool) -> Steps:
    """What one would write by hand: the same student, loss, optimiser and schedule; in `half` precision, or in float32."""
    inputs, targets = case.train
    how = policy.distill
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=policy.finetune.steps + 1)
    generator = torch.Generator().manual_seed(0)
    augmented = type(case.task).augment is not Task.augment
    if how is not None and not augmented:
        teacher.remember(inputs, hints=False, lane=Lane())
    student.train()
    while True:
        for picked in torch.randperm(len(inputs), generator=generator).split(BATCH):
            batch = case.task.augment(inputs[picked], generator) if augmented else inputs[picked]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                outputs = student(batch)
            outputs = outputs.float()
            loss = case.task.loss(outputs, targets[picked])
            if how is not None:
                answer: Answer = teacher.answer(batch) if augmented else teacher.recall(picked)
                loss = distilled_loss(case.task, loss, outputs, None, answer, how)
            loss.backward()
            optimizer.step()
            schedule.step()
            yield None


def in_turn(variants: dict[str, Steps], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each variant: the least of all rounds, in which each takes one step."""
    least = dict.fromkeys(variants, float("inf"))
    for steps in variants.values():
        next(steps)
    for _ in range(rounds):
        for name, steps in variants.items():
            start = time.thread_time()
            next(steps)
            least[name] = min(least[name], 1e3 * (time.thread_time() - start))
    return least


def steps_compared(case: Case, share: float) -> None:
    """Prints what a step takes in every way to take it."""
    taught = case.policy(bits=4, share=share, distill=Distill())
    hinted = case.policy(bits=4, share=share, distill=Distill(hint_share=0.1))
    plain, floating = case.policy(bits=4, share=share), case.policy(share=share)
    teacher, exact = case.teacher(), case.teacher(Exact)
    half = teacher.precision(case.train[0]) is not nullcontext
    contiguous = case.student(plain).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    variants = {
        "float": case.ours(floating, teacher),
        "float, float32": case.ours(floating, exact),
        "w4a8": case.ours(plain, teacher),
        "w4a8, float32": case.ours(plain, exact),
        "w4a8, float32, not channels last": case.ours(plain, exact, student=contiguous),
        "w4a8, teacher": case.ours(taught, teacher),
        "w4a8, teacher with hints": case.ours(hinted, teacher),
        "w4a8, teacher, float32": case.ours(taught, exact),
        "w4a8, teacher's answers not kept": case.ours(taught, case.teacher(Forgetful)),
        "bare loop": bare_loop(case, taught, case.student(taught), case.teacher(), half=half),
        "bare loop, float32": bare_loop(case, taught, case.student(taught), case.teacher(Exact), half=False),
    }
    ms = in_turn(variants, ROUNDS[case.name])
    print(f"\n{case.name}, {share:.0%} of the channels removed: one step of {BATCH}\n")
    for name, value in ms.items():
        print(f"  {name:34s} {value:8.2f} ms")
    print()
    print_goal("throughput over the bare loop", ms["bare loop"] / ms["w4a8, teacher"], at_least=0.9)
    print_goal("throughput over the bare loop in float32", ms["bare loop, float32"] / ms["w4a8, teacher"], at_least=0.9)
    print_goal("time, quantisation-aware / float", ms["w4a8"] / ms["float"], at_most=1.6)
    print_goal("time, quantisation-aware / float, both float32", ms["w4a8, float32"] / ms["float, float32"], at_most=1.6)


def accuracy_in_half(case: Case) -> None:
    """Prints what half precision costs or gains in accuracy after so many steps, beside float32 with the same batches."""
    policy = case.policy(bits=3, share=0.5, distill=Distill())
    policy = policy.model_copy(update={"finetune": Finetune(steps=STEPS, batch_size=BATCH)})
    teachers = {"float32": case.teacher(Exact), "half precision": case.teacher()}
    scores: dict[str, list[float]] = {name: [] for name in teachers}
    start = case.student(policy)
    for seed in range(SEEDS):
        for name, teacher in teachers.items():
            student = deepcopy(start)
            for _ in case.ours(policy, teacher, student=student, seed=seed):
                pass
            scores[name].append(evaluate(student, case.task, case.data["validation"], lane=Lane()))
    differences = [half - exact for exact, half in zip(*scores.values(), strict=True)]
    print(f"\n{case.name}, half of the channels, w3a8: accuracy after {STEPS} steps, {SEEDS} seeds, {VALIDATION:,} examples\n")
    for name, values in scores.items():
        print(f"  {name:34s} {mean(values):.4f}   ({', '.join(f'{value:.4f}' for value in values)})")
    print(f"  half precision - float32           {mean(differences):+.4f}")


def stages(case: Case, data: Data) -> None:
    """Prints what of a trial of `SECONDS` is not training. All that does not grow with its steps is really done."""
    policy = case.policy(bits=4, share=0.5, distill=Distill()).model_copy(update={"finetune": Finetune(steps=20)})
    with tempfile.TemporaryDirectory() as folder:
        result = run_trial(
            policy,
            case.task,
            Target(),
            lambda _: True,
            baseline=case.baseline,
            data=data,
            number=0,
            seed=0,
            folder=Path(folder),
            screened=True,
        )
    seconds = {name: value for name, value in result.seconds.items() if name != "finetune"}
    judged = sum(value for name, value in seconds.items() if name != "compress")
    seconds["finetune"] = SECONDS - sum(seconds.values())
    print(f"\n{case.name}, half of the channels, w4a8, stopped or not at 3 rungs: a trial of {SECONDS} s ({result.status})\n")
    for name, value in seconds.items():
        print(f"  {name:34s} {value:8.2f} s   {value / SECONDS:4.0%}")
    print()
    print_goal("export, measurement and evaluation, share", judged / SECONDS, at_most=0.2)


def threads_compared(case: Case) -> None:
    """Prints how many steps two processes of one thread take together, and one process of two threads."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=_worker, args=(case.name, case.baseline, theirs), daemon=True) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    ours = [ours for ours, _ in pipes]
    for pipe in ours:
        pipe.recv()
    together, alone = [], []
    for _ in range(3):
        together.append(_steps_of(ours, threads=1))
        alone.append(_steps_of(ours[:1], threads=2))
    for pipe in ours:
        pipe.send(None)
    for worker in workers:
        worker.join()
    print(f"\n{case.name}, half of the channels, w4a8 with a teacher: steps per second, best of 3 times 3 s\n")
    print(f"  2 trials of 1 thread               {max(together):8.2f}")
    print(f"  1 trial of 2 threads               {max(alone):8.2f}   ratio {max(together) / max(alone):.2f}")


def _steps_of(pipes: list[Connection], *, threads: int) -> float:
    for pipe in pipes:
        pipe.send(threads)
    return float(sum(pipe.recv() for pipe in pipes))


def _worker(name: str, baseline: Baseline, pipe: Connection) -> None:
    task = load_task(name)
    case = Case(name, task, baseline, some_of(load_data(task)))
    steps = case.ours(case.policy(bits=4, share=0.5, distill=Distill()), case.teacher())
    next(steps)
    pipe.send("ready")
    while (threads := pipe.recv()) is not None:
        torch.set_num_threads(threads)
        next(steps)
        start, taken = time.perf_counter(), 0
        while time.perf_counter() - start < 3:
            next(steps)
            taken += 1
        pipe.send(taken / (time.perf_counter() - start))


def main() -> None:
    torch.set_num_threads(1)
    print_machine()
    for name, file in CASES.items():
        if "cifar" in file and not os.environ.get("CIFAR10_DIR"):
            print(f"\n{name}: skipped; set CIFAR10_DIR to the folder of its data")
            continue
        task = load_task(name)
        data = load_data(task)
        with tempfile.TemporaryDirectory() as folder:
            baseline = make_baseline(task, Target(), Path(folder), seed=0)
        case = Case(name, task, baseline, some_of(data))
        for share in (0.0, 0.5):
            steps_compared(case, share)
        accuracy_in_half(case)
        threads_compared(case)
        stages(case, data)


if __name__ == "__main__":
    main()
