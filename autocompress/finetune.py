"""Fine-tuning of a compressed student, quantisation-aware because the student is, with or without a teacher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy

import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.batches import examples_of
from autocompress.distill import Teacher, distilled_loss, features_of, in_floats
from autocompress.errors import DivergedError
from autocompress.lane import Lane
from autocompress.measure import checked_score
from autocompress.nested import Nested
from autocompress.policy import Policy
from autocompress.result import Rung
from autocompress.student import StudentLayer
from autocompress.task import Task

_EVALUATION_BATCH = 256
# Learned scales move by few per cent in all; at the weights' rate they run away.
_SCALE_RATE = 0.1
# The share of the steps in which the learning rate rises.
_WARMUP = 0.2


def finetune(
    student: nn.Module,
    policy: Policy,
    task: Task,
    teacher: Teacher,
    train: tuple[Nested, Nested],
    judge: Callable[[nn.Module], float],
    *,
    rungs: Sequence[float],
    seed: int,
    lane: Lane,
    untrained: float | None = None,
) -> Iterator[Rung]:
    """Trains `student` in place by `policy` and reports what `judge` says of it before the first step and at each rung.

    `train` holds inputs and targets, arrays or tensors, of which one batch at a time is copied to where the student is.
    `rungs` are shares of the steps. `untrained` is what is known of it before the first step. When the iterator ends, the
    student has the weights of its best rung. Raises `DivergedError` at the first loss that is not finite.
    """
    best = Rung(step=0, accuracy=judge(student) if untrained is None else untrained)
    best_state = deepcopy(student.state_dict())
    yield best
    training = training_steps(student, policy, task, teacher, train, seed=seed, lane=lane)
    for step in sorted({round(share * policy.finetune.steps) for share in (*rungs, 1.0)} - {0}):
        while next(training) < step:
            pass
        rung = Rung(step=step, accuracy=judge(student))
        if task.scoring.gain(rung.accuracy, best.accuracy) >= 0:
            best, best_state = rung, deepcopy(student.state_dict())
        yield rung
    student.load_state_dict(best_state)
    student.eval()


def evaluate(student: nn.Module, task: Task, data: tuple[Nested, Nested], *, lane: Lane) -> float:
    """The task's score of the student in torch. Raises `DivergedError`."""
    inputs, targets = data
    return checked_score(task, student_outputs(student, inputs, lane=lane), targets)


def student_outputs(student: nn.Module, inputs: Nested, *, lane: Lane) -> Nested:
    """What the student makes of `inputs` (n, ...) in torch, as float32."""
    device = next(student.parameters()).device
    outputs = []
    student.eval()
    with torch.no_grad():
        for batch in nested.split(inputs, _EVALUATION_BATCH):
            with lane.shared():
                given = nested.call(student, nested.each(lambda part: torch.tensor(part, device=device), batch))
                outputs.append(nested.each(lambda part: part.cpu().numpy(), in_floats(given)))
    return nested.join(outputs)


def training_steps(
    student: nn.Module, policy: Policy, task: Task, teacher: Teacher, train: tuple[Nested, Nested], *, seed: int, lane: Lane
) -> Iterator[int]:
    """Trains `student` in place, one step at a time, and yields how many were taken. Raises as `finetune` does."""
    settings, how, device = policy.finetune, policy.distill, next(student.parameters()).device
    inputs, targets = train
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(_parameters(student, settings.learning_rate, settings.weight_decay), fused=True)
    schedule = _schedule(optimizer, settings.steps)
    augmented = type(task).augment is not Task.augment
    hints = how is not None and how.hint_share > 0
    with lane.shared():
        precision = teacher.precision(examples_of(inputs, slice(_EVALUATION_BATCH), device))
    # What the teacher says of a batch as it is in the split is looked up, of a changed one it has to be computed.
    known = how is not None and not augmented and teacher.remember(inputs, hints=hints, lane=lane)
    batches = _batches(nested.count(inputs), settings.batch_size, generator)
    torch.manual_seed(seed)  # dropout draws the same whatever the trial has done before
    for taken in range(1, settings.steps + 1):
        with lane.shared():
            picked = next(batches)
            batch, target = examples_of(inputs, picked, device), examples_of(targets, picked, device)
            batch = task.augment(batch, generator) if augmented else batch
            if not student.training:  # after every evaluation
                student.train()
            optimizer.zero_grad()
            with features_of(student, teacher.last) if hints else nullcontext([None]) as features, precision():
                outputs = nested.call(student, batch)
            outputs = in_floats(outputs)
            loss = task.loss(outputs, target)
            if how is not None:
                answer = teacher.recall(picked.to(device)) if known else teacher.answer(batch)
                loss = distilled_loss(task, loss, outputs, features[-1], answer, how)
            if not torch.isfinite(loss):
                raise DivergedError(f"the loss is {loss.item()} at step {taken} of {settings.steps}")
            loss.backward()
            optimizer.step()
            schedule.step()
        yield taken


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    rates = [group["lr"] for group in optimizer.param_groups]
    total = steps + 1
    # Where the warm-up would be exactly one step long, the scheduler divides by zero.
    warmup = _WARMUP if total * _WARMUP != 1 else 1.5 * _WARMUP
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=total, pct_start=warmup)


def _parameters(student: nn.Module, rate: float, decay: float) -> list[dict[str, object]]:
    layers = [module for module in student.modules() if isinstance(module, StudentLayer)]
    scales = [layer.scale for layer in layers if layer.scale is not None]
    known = {id(scale) for scale in scales}
    others = [parameter for parameter in student.parameters() if parameter.requires_grad and id(parameter) not in known]
    weights = [parameter for parameter in others if parameter.dim() > 1]
    rest = [parameter for parameter in others if parameter.dim() <= 1]
    groups: list[dict[str, object]] = [
        {"params": weights, "lr": rate, "weight_decay": decay},
        {"params": rest, "lr": rate, "weight_decay": 0.0},
        {"params": scales, "lr": rate * _SCALE_RATE, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _batches(examples: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of indices without end, a new order each epoch; a last batch of fewer is left out."""
    size = min(size, examples)
    while True:
        order = torch.randperm(examples, generator=generator)
        yield from (order[at : at + size] for at in range(0, examples - size + 1, size))
