"""Distillation: the uncompressed model as teacher, and what a student loses by not following it."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.batches import in_order
from autocompress.fast import Precision, fast_precision, in_fast_layout
from autocompress.lane import Lane
from autocompress.nested import Nested
from autocompress.policy import Distill
from autocompress.student import only_input
from autocompress.task import Task

# The outputs for a batch, and the features that hints are about.
Answer = tuple[Nested, Tensor | None]

_BATCH = 256
# What the answers to a whole split may take of the memory, outputs and features each.
_MOST_BYTES = 2**28


class Teacher:
    """The uncompressed model in evaluation mode: what it says of a batch, and what it has said of the training split.

    `last` names the layer whose inputs are the features that hints are about.
    """

    def __init__(self, model: nn.Module, last: str) -> None:
        self.model = model.eval()
        self.last = last
        self._quick: tuple[nn.Module, Precision] | None = None
        self._known: tuple[Nested | None, Tensor | None] | None = None

    def precision(self, inputs: Nested) -> Precision:
        """In what the network, and students of it, are to be trained; `inputs` (n, ...) show it what they look like."""
        return self._quickened(inputs)[1]

    def answer(self, batch: Nested) -> tuple[Nested, Tensor]:
        """Outputs and features for a batch (n, ...), computed now, in half precision where that is faster."""
        model, precision = self._quickened(batch)
        with torch.no_grad(), features_of(model, self.last) as features, precision():
            outputs = nested.call(model, batch)
        return in_floats(outputs), features[-1].float()

    def remember(self, inputs: Nested, *, hints: bool, lane: Lane) -> bool:
        """Answers the whole, unaugmented training split, once. False when it could not keep the answers in memory.

        Features are asked for with `hints`.
        """
        if self._known is None:
            self._known = self._answers(inputs, lane)
        outputs, features = self._known
        return outputs is not None and (features is not None or not hints)

    def recall(self, picked: Tensor) -> Answer:
        """What it has said of the `picked` (indices, shape (n,)) of the split that it remembers."""
        assert self._known is not None
        outputs, features = self._known
        assert outputs is not None
        return nested.take(outputs, picked), None if features is None else features[picked]

    def _answers(self, inputs: Nested, lane: Lane) -> tuple[Nested | None, Tensor | None]:
        kept: tuple[list[Nested], list[Nested]] = [], []
        examples = nested.count(inputs)
        for batch in in_order(inputs, _BATCH, next(self.model.parameters()).device):
            with lane.shared():
                answer = self.answer(batch)
            for parts, part in zip(kept, answer, strict=True):
                if sum(array[0].nbytes for array in nested.arrays(part)) * examples <= _MOST_BYTES:
                    parts.append(part)
            if not kept[0]:
                break
        outputs, features = (nested.join(parts) if parts else None for parts in kept)
        return outputs, features

    def _quickened(self, example: Nested) -> tuple[nn.Module, Precision]:
        if self._quick is None:
            model = in_fast_layout(deepcopy(self.model), nested.take(example, slice(2)))
            self._quick = model, fast_precision(model, example)
        return self._quick


@contextmanager
def features_of(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collects what `layer` is given while the block runs."""
    collected: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, arguments, keywords: collected.append(only_input(arguments, keywords)), with_kwargs=True
    )
    try:
        yield collected
    finally:
        hook.remove()


def in_floats(outputs: Nested) -> Nested:
    """The same outputs, in single precision what was in half of it."""
    return nested.each(lambda part: part.float() if part.is_floating_point() else part, outputs)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of how alike the examples of a batch look, rows scaled to length 1, times the batch size.

    Similarity-preserving distillation (Tung and Mori, 2019): unlike FitNets it needs no extra layer where the student
    is narrower than the teacher.
    """
    return (_likeness(student) - _likeness(teacher)).square().mean() * len(student)


def distilled_loss(
    task: Task, task_loss: Tensor, outputs: Nested, features: Tensor | None, teacher: Answer, how: Distill
) -> Tensor:
    """The loss of `Distill`: task, outputs and features in their shares."""
    teacher_outputs, teacher_features = teacher
    loss = (1 - how.share - how.hint_share) * task_loss
    loss = loss + how.share * task.distillation(outputs, teacher_outputs, how.temperature)
    if features is not None and teacher_features is not None:
        loss = loss + how.hint_share * hint_loss(features.float(), teacher_features)
    return loss


def _likeness(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return nn.functional.normalize(rows @ rows.T, dim=1)
