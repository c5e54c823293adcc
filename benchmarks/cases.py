"""The experiments that the benchmarks measure, and their uncompressed models."""

import tempfile
from pathlib import Path

from autocompress.baseline import Baseline, Data, load_data, make_baseline
from autocompress.experiment import load_experiment
from autocompress.target import Target
from autocompress.task import Task

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def opened(name: str) -> tuple[Task, Data, Baseline]:
    """The task of an experiment, its data, and its uncompressed model, trained if need be and measured anew on this machine."""
    task = load_experiment(EXPERIMENTS / f"{name}.py").task
    with tempfile.TemporaryDirectory() as folder:
        return task, load_data(task), make_baseline(task, Target(), Path(folder), seed=0)
