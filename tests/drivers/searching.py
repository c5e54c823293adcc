"""Small real searches: an experiment file on disk, the search and the job that come of it, a listener that notes all."""

from pathlib import Path

from autocompress.baseline import Baseline, Data
from autocompress.drivers import Job
from autocompress.experiment import load_experiment
from autocompress.folder import RunFolder
from autocompress.result import Rung, TrialResult
from autocompress.search import Asked, Search

_EXPERIMENT = """
import os, signal, time
from pathlib import Path
from autocompress import Budget, Experiment, Finetune, LayerPolicy, Policy
from autocompress.halving import Halving
from autocompress.refitting import Refit
from autocompress.testing import FailingTask, NanTask, ToyTask

HERE = Path(__file__).parent

{task}

def space(trial, layers, target):
    layer = LayerPolicy(
        weight_bits=trial.suggest_int("bits", 2, 8),
        activation_bits=8,
        weight_sparsity=trial.suggest_float("zeros", 0.0, 0.5),
    )
    return Policy(
        channel_sparsity={{group.name: trial.suggest_categorical("share", [0.0, 0.5]) for group in layers.groups}},
        layers={{name.name: layer for name in layers}},
        finetune=Finetune(
            steps=trial.suggest_categorical("steps", [0, 8, 12]), batch_size=trial.suggest_categorical("batch", [16, 17, 18])
        ),
    )

experiment = Experiment(task=Task(), space=space, sampler="random", objectives=("size", "accuracy"), {settings})
"""


def experiment_file(folder: Path, settings: str, *, task: str = "Task = ToyTask") -> Path:
    """Writes an experiment on the toy network; `task` defines `Task`, `settings` are further arguments of `Experiment`."""
    file = folder / "experiment.py"
    file.write_text(_EXPERIMENT.format(task=task, settings=settings))
    return file


def search_of(file: Path, baseline: Baseline, data: Data) -> tuple[Search, Job]:
    experiment = load_experiment(file)
    folder = RunFolder(file.parent / "run")
    folder.path.mkdir()
    job = Job(experiment=experiment, experiment_file=file, folder=folder, baseline=baseline, data=data)
    return Search(experiment, baseline.layers, baseline.metrics, study=folder.study), job


class Ear:
    """A listener that keeps what it hears, in order."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self.heard: list[tuple[str, int]] = []
        self.steps: dict[int, list[int]] = {}
        self.asked: dict[int, Asked] = {}
        self.results: dict[int, TrialResult] = {}

    def started(self, asked: Asked) -> None:
        self.heard.append(("started", asked.number))
        self.asked[asked.number] = asked

    def rung(self, number: int, rung: Rung) -> None:
        self.heard.append(("rung", number))
        self.steps.setdefault(number, []).append(rung.step)

    def finished(self, result: TrialResult) -> None:
        assert result.number not in [told.number for told in self._search.results], "the record comes before the search"
        self.heard.append(("finished", result.number))
        self.results[result.number] = result


def reached(result: TrialResult) -> list[tuple[int, float]]:
    """How far a trial came, without the time it took."""
    return [(rung.step, rung.accuracy) for rung in result.rungs]
