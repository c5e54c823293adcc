"""Distillation: the uncompressed model as teacher, and what a student loses by not following it."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from autocompress.fast import Precision, fast_precision, in_fast_layout
from autocompress.lane import Lane
from autocompress.policy import Distill
from autocompress.student import only_input

# The outputs for a batch, and the features that hints are about.
Answer = tuple[Tensor, Tensor | None]

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
        self._known: tuple[Tensor | None, Tensor | None] | None = None

    def precision(self, inputs: Tensor) -> Precision:
        """In what the network, and students of it, are to be trained; `inputs` (n, ...) show it what they look like."""
        return self._quickened(inputs)[1]

    def answer(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and features for a batch (n, ...), computed now, in half precision where that is faster."""
        model, precision = self._quickened(batch)
        with torch.no_grad(), features_of(model, self.last) as features, precision():
            outputs = model(batch)
        return outputs.float(), features[-1].float()

    def remember(self, inputs: Tensor, *, hints: bool, lane: Lane) -> bool:
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
        return outputs[picked], None if features is None else features[picked]

    def _answers(self, inputs: Tensor, lane: Lane) -> tuple[Tensor | None, Tensor | None]:
        kept: tuple[list[Tensor], list[Tensor]] = [], []
        for batch in inputs.split(_BATCH):
            with lane.shared():
                answer = self.answer(batch)
            for parts, part in zip(kept, answer, strict=True):
                if part[0].nbytes * len(inputs) <= _MOST_BYTES:
                    parts.append(part)
            if not kept[0]:
                break
        outputs, features = (torch.cat(parts) if parts else None for parts in kept)
        return outputs, features

    def _quickened(self, example: Tensor) -> tuple[nn.Module, Precision]:
        if self._quick is None:
            model = in_fast_layout(deepcopy(self.model), example[:2])
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


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the softened classes, times the temperature squared (Hinton et al., 2015)."""
    log_student = nn.functional.log_softmax(student / temperature, dim=-1)
    log_teacher = nn.functional.log_softmax(teacher / temperature, dim=-1)
    return nn.functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of how alike the examples of a batch look, rows scaled to length 1, times the batch size.

    Similarity-preserving distillation (Tung and Mori, 2019): unlike FitNets it needs no extra layer where the student
    is narrower than the teacher.
    """
    return (_likeness(student) - _likeness(teacher)).square().mean() * len(student)


def distilled_loss(task_loss: Tensor, outputs: Tensor, features: Tensor | None, teacher: Answer, how: Distill) -> Tensor:
    """The loss of `Distill`: task, logits and features in their shares."""
    teacher_outputs, teacher_features = teacher
    loss = (1 - how.share - how.hint_share) * task_loss + how.share * logit_loss(outputs, teacher_outputs, how.temperature)
    if features is not None and teacher_features is not None:
        loss = loss + how.hint_share * hint_loss(features.float(), teacher_features)
    return loss


def _likeness(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return nn.functional.normalize(rows @ rows.T, dim=1)
