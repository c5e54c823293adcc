"""Experiment files around `ToyTask`, and the command line called in this process."""

from pathlib import Path

import pytest

from autocompress.cli import main

# What a test may replace of a toy experiment.
SPACE = """\
def space(trial, layers, target):
    share = trial.suggest_float("share", 0.0, 0.75)
    bits = trial.suggest_int("bits", 2, 8)
    return Policy(
        channel_sparsity={group.name: share for group in layers.groups},
        layers={layer.name: LayerPolicy(weight_bits=bits, activation_bits=8) for layer in layers},
        finetune=Finetune(steps=8),
    )
"""
LIMITS = ("accuracy >= baseline - 0.6",)


def write_experiment(
    folder: Path,
    *,
    task: str = "ToyTask()",
    space: str = SPACE,
    classes: str = "",
    trials: int = 4,
    limits: tuple[str, ...] = LIMITS,
    name: str = "toy.py",
) -> Path:
    """A file that searches `task` (an expression; `classes` is what it needs) at random."""
    text = f"""\
import numpy as np
import torch

from autocompress import Budget, ClassificationTask, Experiment, Finetune, LayerPolicy, Policy
from autocompress.testing import FailingTask, NanTask, ToyNet, ToyTask


{classes}


{space}


experiment = Experiment(task={task}, space=space, limits={limits!r}, budget=Budget(trials={trials}), sampler="random")
"""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text)
    return file


def call(*arguments: str | Path) -> int:
    """`autocompress ARGUMENTS` in this process; the exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code
