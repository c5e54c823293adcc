"""A run: what it was asked for, and its folder opened again."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from autocompress import neighbours
from autocompress.artifacts import InStorage
from autocompress.baseline import Baseline, load_baseline
from autocompress.credentials import public_uri
from autocompress.errors import InputError, RunFolderError, unknown_name
from autocompress.experiment import Budget, Experiment, check_metrics, load_experiment
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.noun import Noun
from autocompress.sampling import SAMPLERS
from autocompress.space import load_space, load_start
from autocompress.target import Target


class Options(Noun):
    """What was asked for beside the experiment file; what is None or empty is as the experiment says.

    `trials` and `minutes` replace the whole budget: with `minutes` alone the number of trials is not bounded. `costs` is the
    file of a cost table made elsewhere, `targets` are names as `Target.parse` reads them.
    """

    space: str | None = None
    trials: int | None = None
    minutes: float | None = None
    sampler: str | None = None
    seed: int | None = None
    limits: tuple[str, ...] = ()
    costs: str | None = None
    targets: tuple[str, ...] = ()

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment with these options. Raises `InputError` for what cannot be used."""
        if self.space is not None:
            experiment = replace(experiment, space=load_space(self.space), start=load_start(self.space))
        if self.trials is not None or self.minutes is not None:
            experiment = replace(experiment, budget=Budget(trials=self.trials, minutes=self.minutes))
        if self.sampler is not None:
            if self.sampler not in SAMPLERS:
                raise unknown_name("sampler", self.sampler, SAMPLERS)
            experiment = replace(experiment, sampler=self.sampler)
        if self.seed is not None:
            experiment = replace(experiment, seed=self.seed)
        if self.targets:
            experiment = replace(experiment, target=Target.parse(*self.targets))
        if self.limits:
            experiment = replace(experiment, limits=self.limits)
        check_metrics(experiment)
        return experiment


class StudyNote(Noun):
    """Which study a run works on that is not in its folder: the database (without credentials), the name of the study there.

    `run` is what marks this run's trials.
    """

    storage: str
    name: str
    run: str


class ArtifactsNote(Noun):
    """Where the trials' files are that are not in the run folder: in the folder `name` of the storage (without credentials)."""

    storage: str
    name: str

    @staticmethod
    def of(folder: RunFolder) -> "ArtifactsNote | None":
        """None for those that are in the run folder."""
        kept = folder.storage
        return None if kept is None else ArtifactsNote(storage=public_uri(kept.url), name=kept.name)

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError("it leads out of the storage")
        return name


class RunNote(Noun):
    """`run.json`: where a run came from. `experiment` is the path of its file, `started` seconds since the epoch.

    `baseline_of` names the run of which this one is a rival, `study` the study if it is shared with others, `artifacts` the
    storage of the trials' files if they are not in the run folder.
    """

    version: Literal[1] = 1
    experiment: str
    options: Options
    tracking_uri: str
    started: float
    versions: dict[str, str]
    baseline_of: str | None = None
    study: StudyNote | None = None
    artifacts: ArtifactsNote | None = None


@dataclass(frozen=True)
class Run:
    """A run folder opened again: what it was asked for, and the experiment file to load (the original, or the copy)."""

    folder: RunFolder
    note: RunNote
    experiment_file: Path

    @property
    def title(self) -> str:
        """What it is called in reports and in MLflow: its folder's name, a rival's after that of its run."""
        name = self.folder.path.name
        return name if self.note.baseline_of is None else f"{self.note.baseline_of} / {name}"

    def experiment(self) -> Experiment:
        """The experiment with the options of the run. Raises `ExperimentError`."""
        if self.experiment_file == self.folder.experiment:
            # The copy still finds the neighbours of the original; so it does in the processes that Ray starts.
            original = Path(self.note.experiment).parent
            others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
            os.environ["PYTHONPATH"] = os.pathsep.join(
                [*(entry for entry in others if not neighbours.is_preferred(entry)), str(original)]
            )
            neighbours.prefer(original)
        return self.note.options.apply(load_experiment(self.experiment_file))

    def baseline(self) -> Baseline:
        """Raises `RunFolderError`."""
        return load_baseline(self.folder.baseline)

    def front(self) -> ParetoFront:
        """Raises `RunFolderError` when no trial has finished yet."""
        if not self.folder.front_json.exists():
            raise RunFolderError(f"{self.folder.path} has no front yet: no trial has finished")
        return read_front(self.folder)

    def is_under_way(self) -> bool:
        """True while a process searches in this folder."""
        return self.folder.is_under_way()


def open_run(folder: str | Path) -> Run:
    """Raises `RunFolderError` when the folder holds no run, or when it is damaged."""
    where = RunFolder(folder)
    where.check()
    try:
        note = RunNote.from_json(where.run_json.read_bytes(), source=where.run_json.name)
    except (OSError, InputError) as error:
        raise RunFolderError(
            f"{where.path} is damaged: {error}; put run.json back, or start a new run from {where.experiment}"
        ) from error
    if note.artifacts is not None:
        where.artifacts = InStorage(note.artifacts.storage, note.artifacts.name)
    original = Path(note.experiment)
    if not original.is_file() and not where.experiment.is_file():
        raise RunFolderError(
            f"the experiment of this run is gone: neither {original} nor {where.experiment} exists; put one back"
        )
    return Run(where, note, original if original.is_file() else where.experiment)


def read_front(folder: RunFolder) -> ParetoFront:
    """`front.json`. Raises `RunFolderError` when it is damaged."""
    try:
        return ParetoFront.from_json(folder.front_json.read_bytes(), source=folder.front_json.name)
    except (OSError, InputError) as error:
        raise RunFolderError(f"{folder.path} is damaged: {error}; `autocompress resume {folder.path}` makes it anew") from error
