"""An experiment: what is compressed, how policies are sampled, what counts, for how long."""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from autocompress import neighbours
from autocompress.errors import ExperimentError, InputError, unknown_name
from autocompress.halving import Halving
from autocompress.objective import METRICS, SCORE, Limit, Objective, base_of
from autocompress.policy import Policy
from autocompress.refitting import Refit
from autocompress.target import Target
from autocompress.task import Task

if TYPE_CHECKING:
    from autocompress.prior import Prior

# (trial, layers, target) -> Policy, or (trial, layers, target, prior) -> Policy: one that takes an argument of that name is
# given the solver over sensitivities and costs.
Space = Callable[..., Policy]
Start = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Budget:
    """When a search ends: after `trials` trials, `minutes` of wall-clock time, or `worker_seconds` of compute.

    Whichever comes first. Worker-seconds are what all trials took together, and what was measured before the first one:
    sensitivities and costs.
    """

    trials: int | None = 40
    minutes: float | None = None
    worker_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.trials is None and self.minutes is None and self.worker_seconds is None:
            raise ExperimentError("a budget needs trials, minutes, worker_seconds, or several of them")
        if self.trials is not None and self.trials < 1:
            raise ExperimentError(f"a budget needs at least 1 trial, given {self.trials}")
        if self.minutes is not None and self.minutes <= 0:
            raise ExperimentError(f"a budget's minutes must be above 0, given {self.minutes}")
        if self.worker_seconds is not None and self.worker_seconds <= 0:
            raise ExperimentError(f"a budget's worker_seconds must be above 0, given {self.worker_seconds}")

    @property
    def words(self) -> str:
        """``40 trials or 20 minutes``."""
        ends = {"trials": self.trials, "minutes": self.minutes, "worker-seconds": self.worker_seconds}
        return " or ".join(f"{most:.12g} {what}" for what, most in ends.items() if most is not None)


@dataclass(frozen=True)
class Experiment:
    """Everything a search needs to know.

    With further targets (`Target.also`) the latency at each of them is an objective too, if latency is.
    `space` is a function ``(trial, layers, target) -> Policy``. `objectives` are metric names or `Objective`s, `limits`
    are written like ``"accuracy >= baseline - 0.01"``. `sampler` is "tpe", "nsga2", "random", or any Optuna sampler.
    `start` holds parameter dictionaries (as the space names them) that are tried first, or is a function that makes them
    of the prior. `halving` stops bad trials early, `refit` trains the best further; None: neither. `cpus_per_trial` and
    `gpus_per_trial` are what Ray reserves: without GPUs a trial trains on the CPU. Trials share a GPU by fractions; with
    "auto" (a GPU where there is one) by what those before have taken of its memory. One for which that was too little is begun
    again once, alone on a GPU. A trial may take `trial_minutes` on its worker, its waiting for the machine to time its file
    included; None: as long as it likes. One whose worker died, or took too long on Ray, is begun again `retries` times before
    it has FAILED. `settings` is shown in reports and MLflow.
    """

    task: Task
    space: Space
    objectives: Sequence[str | Objective] = ("size_bytes", "latency_ms", "accuracy")
    limits: Sequence[str | Limit] = ()
    target: Target = field(default_factory=Target)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    sampler: Any = "tpe"
    start: "Start | Callable[[Prior], Start]" = ()
    halving: Halving | None = None
    refit: Refit | None = None
    cpus_per_trial: float = 1
    gpus_per_trial: float | Literal["auto"] = 0
    trial_minutes: float | None = None
    retries: int = 1
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trial_minutes is not None and not self.trial_minutes > 0:
            raise ExperimentError(f"trial_minutes must be above 0, given {self.trial_minutes}")
        if self.retries < 0:
            raise ExperimentError(f"retries must be 0 or more, given {self.retries}")
        gpus = self.gpus_per_trial
        if not (gpus == "auto" or (isinstance(gpus, int | float) and (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))))):
            raise ExperimentError(f"gpus_per_trial is a share of a GPU, a whole number of them, or 'auto'; given {gpus!r}")
        if gpus == "auto" and not self.cpus_per_trial > 0:
            raise ExperimentError(f"gpus_per_trial='auto' needs cpus_per_trial above 0, given {self.cpus_per_trial:g}")

    @property
    def needs_prior(self) -> bool:
        """True when the space, or what is tried first, is made of sensitivities and costs."""
        return callable(self.start) or is_guided(self.space)

    @property
    def rungs(self) -> tuple[float, ...]:
        """The shares of its fine-tuning steps after which a trial is judged; always the first and the last."""
        between = self.halving.rungs if self.halving is not None else (0.5,)
        return tuple(sorted({0.0, *between, 1.0}))

    @property
    def parsed_objectives(self) -> tuple[Objective, ...]:
        found: dict[str, Objective] = {}
        scoring = self.task.scoring
        for objective in (Objective.of(objective, scoring) for objective in self.objectives):
            places = self.target.each if objective.metric == "latency_ms" else self.target.each[:1]
            for place in places:
                metric = self.target.metric(objective.metric, place)
                found.setdefault(metric, objective.model_copy(update={"metric": metric}))
        return tuple(found.values())

    @property
    def parsed_limits(self) -> tuple[Limit, ...]:
        scoring = self.task.scoring
        return tuple(limit if isinstance(limit, Limit) else Limit.parse(limit, scoring) for limit in self.limits)


def is_guided(space: Space) -> bool:
    """True when the space takes the prior: it has a parameter of that name."""
    return "prior" in inspect.signature(space).parameters


def load_experiment(path: str | Path) -> Experiment:
    """Runs the file and returns its `experiment`.

    The folder of the file is importable, so that an experiment may import its neighbours: anew each time, see
    `autocompress.neighbours`. Raises `ExperimentError` that names the file, the line and the cause.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ExperimentError(f"no experiment file {path}{_nearest_file(file)}")
    module = run_file(file)
    experiment = getattr(module, "experiment", None)
    if experiment is None:
        raise ExperimentError(f"{path} defines no `experiment`; end it with `experiment = Experiment(task=..., space=...)`")
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{path}: `experiment` must be an autocompress.Experiment, given {type(experiment).__name__}")
    _check(experiment, path)
    return experiment


def run_file(file: Path) -> ModuleType:
    """The module that the file makes. Raises `ExperimentError` that names the file, the line and the cause."""
    # One fixed module name per file: what is pickled in one process is found in another.
    name = f"autocompress_experiment_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{file} is no Python file; an experiment is a .py file that defines `experiment`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with neighbours.beside(file.parent):
            spec.loader.exec_module(module)
    except ExperimentError:
        raise
    except SyntaxError as error:
        raise ExperimentError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        line = _line_in(file, error)
        raise ExperimentError(f"{file}{line}: {type(error).__name__}: {error}") from error
    return module


def _line_in(file: Path, error: BaseException) -> str:
    traceback, line = error.__traceback__, ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(file):
            line = f", line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line


def _check(experiment: Experiment, path: str | Path) -> None:
    if not isinstance(experiment.task, Task):
        raise ExperimentError(f"{path}: task must be an autocompress.Task, given {type(experiment.task).__name__}")
    if not callable(experiment.space):
        raise ExperimentError(f"{path}: space must be a function (trial, layers, target) -> Policy, given {experiment.space!r}")
    if not experiment.parsed_objectives:
        raise ExperimentError(f"{path}: at least one objective is needed, e.g. objectives=('size_bytes', 'accuracy')")
    goals = {objective.goal for objective in experiment.parsed_objectives if objective.metric == SCORE}
    if goals - {experiment.task.scoring.goal}:
        raise ExperimentError(
            f"{path}: the objective {SCORE!r} is to be {goals.pop()}, but the task says lower_is_better = "
            f"{experiment.task.lower_is_better}; name it {SCORE!r} and leave the goal to the task"
        )
    _ = experiment.target.menu, experiment.parsed_limits


def check_metrics(experiment: Experiment) -> None:
    """Raises `InputError` for a metric at a target that the search is not for. (A file may name those it is told of later.)"""
    targets = [place.name for place in experiment.target.also]
    wanted = [objective.metric for objective in experiment.parsed_objectives]
    for metric in [*wanted, *(limit.metric for limit in experiment.parsed_limits)]:
        _, _, place = metric.partition("/")
        if place and base_of(metric) in METRICS and place not in targets:
            if not targets:
                raise InputError(f"{metric}: the search is for {experiment.target.name} alone")
            raise unknown_name("further target", place, targets)


def _nearest_file(file: Path) -> str:
    if not file.parent.is_dir():
        return f": there is no folder {file.parent}"
    near = difflib.get_close_matches(file.name, [other.name for other in file.parent.glob("*.py")], n=1)
    return f"; did you mean {file.parent / near[0]}?" if near else ""
