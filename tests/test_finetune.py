"""A step of fine-tuning: what it computes, and what the teacher is asked."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from autocompress import distill
from autocompress.baseline import Baseline, Data, as_tensors
from autocompress.compress import compress
from autocompress.distill import Answer, Teacher, distilled_loss
from autocompress.fast import Precision, in_fast_layout
from autocompress.finetune import training_steps
from autocompress.lane import Lane
from autocompress.nested import Nested
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.testing import ToyTask

LAYERS = {name: LayerPolicy(weight_bits=4) for name in ("stem", "conv1", "conv2", "head")}
POLICY = Policy(layers=LAYERS, finetune=Finetune(steps=6, learning_rate=1e-3, batch_size=32), distill=Distill(hint_share=0.1))


class Exact(Teacher):
    """Has everything computed in float32, its own answers too, also where the hardware is made for bfloat16."""

    def _quickened(self, example: Nested) -> tuple[torch.nn.Module, Precision]:
        return super()._quickened(example)[0], nullcontext


class Flipping(ToyTask):
    """Mirrors all pictures: the teacher has to look at them again."""

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs.flip(3)


def both_of(network: torch.nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and what the last layer was given."""
    given: list[Tensor] = []
    hook = network.get_submodule("head").register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    outputs: Tensor = network(batch)
    hook.remove()
    return outputs, given[0]


@pytest.fixture
def train(toy_data: Data) -> tuple[Tensor, Tensor]:
    return as_tensors(toy_data["train"])


@pytest.fixture
def student(toy_task: ToyTask, toy_baseline: Baseline, train: tuple[Tensor, Tensor]) -> torch.nn.Module:
    return in_fast_layout(compress(toy_baseline.model(toy_task), POLICY, train[0]), train[0][:8])


def test_steps_do_what_a_bare_loop_does(
    student: torch.nn.Module, toy_task: ToyTask, toy_baseline: Baseline, train: tuple[Tensor, Tensor]
) -> None:
    model, by_hand = toy_baseline.model(toy_task), deepcopy(student)
    policy = POLICY.model_copy(update={"finetune": Finetune(steps=6, learning_rate=1e-3, batch_size=32, weight_decay=0.1)})
    for _ in training_steps(student, policy, toy_task, Exact(model, "head"), train, seed=1, lane=Lane()):
        pass

    inputs, targets = train
    scales = [value for name, value in by_hand.named_parameters() if name.endswith(".scale")]
    weights = [value for name, value in by_hand.named_parameters() if value.dim() > 1]
    rest = [value for name, value in by_hand.named_parameters() if value.dim() <= 1 and not name.endswith(".scale")]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1, "lr": 1e-3}, {"params": rest, "lr": 1e-3}, {"params": scales, "lr": 1e-4}],
        weight_decay=0.0,
        foreach=False,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[1e-3, 1e-3, 1e-4], total_steps=7, pct_start=0.2)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    by_hand.train()
    for picked in order.split(32)[:6]:
        batch = inputs[picked]
        outputs, features = both_of(by_hand, batch)
        with torch.no_grad():
            answer: Answer = both_of(model, batch)
        loss = distilled_loss(
            toy_task, toy_task.loss(outputs, targets[picked]), outputs, features, answer, POLICY.distill or Distill()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    start = compress(model, POLICY, inputs)
    for (name, ours), theirs in zip(student.named_parameters(), by_hand.parameters(), strict=True):
        way = theirs.detach() - start.get_parameter(name).detach()
        assert float((ours - theirs).detach().norm()) < 0.02 * float(way.norm()), name


@pytest.mark.parametrize("hints", [0.0, 0.1])
def test_the_teacher_is_asked_once_where_the_batches_are_as_in_the_split(
    hints: float, student: torch.nn.Module, toy_task: ToyTask, toy_baseline: Baseline, train: tuple[Tensor, Tensor]
) -> None:
    asked: list[int] = []

    class Counting(Teacher):
        def answer(self, batch: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(len(batch))
            return super().answer(batch)

    policy = POLICY.model_copy(update={"distill": Distill(hint_share=hints)})
    teacher = Counting(toy_baseline.model(toy_task), "head")
    for task, expected in ((toy_task, [256]), (toy_task, []), (Flipping(), [32] * 6)):
        asked.clear()
        assert list(training_steps(deepcopy(student), policy, task, teacher, train, seed=0, lane=Lane())) == [1, 2, 3, 4, 5, 6]
        assert asked == expected


def test_what_is_recalled_is_what_would_be_answered(
    toy_task: ToyTask, toy_baseline: Baseline, train: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, _ = train
    model = toy_baseline.model(toy_task)
    teacher, picked = Teacher(model, "head"), torch.tensor([7, 3, 200])
    assert teacher.remember(inputs, hints=True, lane=Lane())
    for recalled, answered in zip(teacher.recall(picked), teacher.answer(inputs[picked]), strict=True):
        assert recalled is not None
        assert torch.allclose(recalled, answered, atol=0.05 * float(answered.abs().max()))
    with torch.no_grad():
        exact = model(inputs[picked])
    assert torch.allclose(teacher.recall(picked)[0], exact, atol=0.02 * float(exact.abs().max()))

    # 256 examples of 4 outputs, 4 bytes each, are 4096 bytes; the features are 64 times as many.
    monkeypatch.setattr(distill, "_MOST_BYTES", 4096)
    teacher = Teacher(model, "head")
    assert teacher.remember(inputs, hints=False, lane=Lane())
    assert not teacher.remember(inputs, hints=True, lane=Lane())
    assert teacher.recall(picked)[1] is None
    monkeypatch.setattr(distill, "_MOST_BYTES", 4095)
    assert not Teacher(model, "head").remember(inputs, hints=False, lane=Lane())
