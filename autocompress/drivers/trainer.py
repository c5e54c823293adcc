"""The trainer: a Ray process that carries out one trial after another.

Only strings, bytes and arrays come in and go out; the model is built here, from the experiment file.
"""

import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from autocompress.baseline import Baseline, Data
from autocompress.drivers.timing import remote_timer
from autocompress.experiment import load_experiment
from autocompress.policy import Policy
from autocompress.result import Rung, TrialResult
from autocompress.target import Target
from autocompress.task import Task
from autocompress.trial import trial_rungs

_SHELF_SECONDS = 300.0
# Trainers give way to what else the machine does, above all to the latency lane.
_NICENESS = 10


@dataclass(frozen=True, eq=False)
class Supplies:
    """What every trainer of a search needs. It lies in Ray's object store; trainers of a node share its arrays, read-only."""

    experiment_file: str
    target: str
    threads: int
    baseline: Baseline
    data: Data


class Trainer(tune.Trainable):
    """One call of `step` takes the trial to its next rung.

    A trial is `{"number": int, "policy": JSON, "seed": int}`. A step gives `{"rung": JSON}`, the last one
    `{"result": JSON, "done": True}`, when the trial's files are already on the shelf.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters gives what follows the config
        self, config: dict[str, Any], supplies: Supplies, lane: Any, shelf: Any
    ) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        torch.set_num_threads(supplies.threads)
        self._supplies, self._lane, self._shelf = supplies, lane, shelf
        self._baseline_file = ray.put(supplies.baseline.onnx)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            return {"rung": next(self._rungs).to_json()}
        except StopIteration as end:
            result: TrialResult = end.value
        files = {path.name: path.read_bytes() for path in self._folder.iterdir()} if self._folder.is_dir() else {}
        ray.get(self._shelf.keep.remote(result.number, files), timeout=_SHELF_SECONDS)
        return {"result": result.to_json(), "done": True}

    def cleanup(self) -> None:
        self._rungs.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, config: dict[str, Any]) -> None:
        self._folder = Path(self.logdir) / "files"
        self._rungs = self._carry_out(config)

    # A generator, so that whatever fails does so in a step: there Tune tells what, and tries again.
    def _carry_out(self, config: dict[str, Any]) -> Generator[Rung, None, TrialResult]:
        return (
            yield from trial_rungs(
                Policy.from_json(config["policy"]),
                self._task,
                Target.from_json(self._supplies.target),
                baseline=self._supplies.baseline,
                data=self._supplies.data,
                number=config["number"],
                seed=config["seed"],
                folder=self._folder,
                timer=remote_timer(self._lane, self._baseline_file),
            )
        )

    @cached_property
    def _task(self) -> Task:
        return load_experiment(self._supplies.experiment_file).task
