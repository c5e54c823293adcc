"""What the Ray processes of a search work with."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Job
from autocompress.experiment import load_experiment
from autocompress.task import Task

# Who trains gives way to what else the machine does, above all to the latency lane.
_NICENESS = 10


@dataclass(frozen=True, eq=False)
class Supplies:
    """What every worker of a search needs. It lies in Ray's object store; workers of a node share its arrays, read-only.

    The task is built in each process, from `experiment_file`, the path as workers see it; `target` is JSON.
    """

    experiment_file: str
    target: str
    threads: int
    rungs: tuple[float, ...]
    halving: bool
    baseline: Baseline
    data: Data

    @staticmethod
    def of(job: Job, experiment_file: Path) -> "Supplies":
        return Supplies(
            experiment_file=str(experiment_file),
            target=job.experiment.target.to_json(),
            threads=job.threads,
            rungs=job.experiment.rungs,
            halving=job.experiment.halving is not None,
            baseline=job.baseline,
            data=job.data,
        )

    @cached_property
    def task(self) -> Task:
        """Raises `ExperimentError` when the file cannot be loaded here."""
        return load_experiment(self.experiment_file).task

    def take_place(self) -> None:
        """Makes this process one that trains: at low priority, with the threads that are reserved for it."""
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        torch.set_num_threads(self.threads)
