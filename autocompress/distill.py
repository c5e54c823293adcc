"""Distillation: the uncompressed model as teacher, and what a student loses by not following it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autocompress.policy import Distill

_BATCH = 256


class Teacher:
    """The uncompressed model in evaluation mode, and its outputs for the training split, computed once when first asked.

    `last` names the layer whose inputs are the features that hints are about.
    """

    def __init__(self, model: nn.Module, last: str) -> None:
        self.model = model.eval()
        self.last = last
        self._outputs: Tensor | None = None

    def outputs_of_all(self, inputs: Tensor) -> Tensor:
        """The outputs for the whole, unaugmented training split."""
        if self._outputs is None:
            with torch.no_grad():
                self._outputs = torch.cat([self.model(batch) for batch in inputs.split(_BATCH)])
        return self._outputs

    @torch.no_grad()
    def outputs_and_features(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        with features_of(self.model, self.last) as features:
            outputs = self.model(batch)
        return outputs, features[-1]


@contextmanager
def features_of(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collects what `layer` is given while the block runs."""
    collected: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: collected.append(inputs[0]))
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


def distilled_loss(
    task_loss: Tensor, outputs: Tensor, features: Tensor | None, teacher: tuple[Tensor, Tensor | None], how: Distill
) -> Tensor:
    """The loss of `Distill`: task, logits and features in their shares."""
    teacher_outputs, teacher_features = teacher
    loss = (1 - how.share - how.hint_share) * task_loss + how.share * logit_loss(outputs, teacher_outputs, how.temperature)
    if features is not None and teacher_features is not None:
        loss = loss + how.hint_share * hint_loss(features, teacher_features)
    return loss


def _likeness(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return nn.functional.normalize(rows @ rows.T, dim=1)
