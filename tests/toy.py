"""Experiment files around `ToyTask`, and the command line called in this process."""

import shutil
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


def copy_run(run: Path, folder: Path) -> Path:
    """A copy of a run, with a copy of its MLflow database beside it, that a test may change; `folder` again."""
    shutil.copytree(run, folder)
    theirs, mine = run.parent / "mlflow.db", folder.parent / "mlflow.db"
    if not mine.exists():
        shutil.copyfile(theirs, mine)
    for note in (folder / "mlflow.json", folder / "run.json"):
        note.write_text(note.read_text().replace(f"sqlite:///{theirs}", f"sqlite:///{mine}"))
    return folder


def call(*arguments: str | Path) -> int:
    """`autocompress ARGUMENTS` in this process; the exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code
