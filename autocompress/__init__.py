"""autocompress finds the best ways to make a trained PyTorch model smaller and faster.

Importing this package loads neither torch nor ray, optuna or mlflow: the names below are looked up when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.experiment import Budget as Budget
    from autocompress.experiment import Experiment as Experiment
    from autocompress.experiment import load_experiment as load_experiment
    from autocompress.front import ParetoFront as ParetoFront
    from autocompress.halving import Halving as Halving
    from autocompress.layer import Group as Group
    from autocompress.layer import Layer as Layer
    from autocompress.layer import Layers as Layers
    from autocompress.objective import Limit as Limit
    from autocompress.objective import Objective as Objective
    from autocompress.policy import Distill as Distill
    from autocompress.policy import Finetune as Finetune
    from autocompress.policy import LayerPolicy as LayerPolicy
    from autocompress.policy import Policy as Policy
    from autocompress.refitting import Refit as Refit
    from autocompress.result import Status as Status
    from autocompress.result import TrialResult as TrialResult
    from autocompress.target import Target as Target
    from autocompress.task import ClassificationTask as ClassificationTask
    from autocompress.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "Budget": "experiment",
    "ClassificationTask": "task",
    "Distill": "policy",
    "Experiment": "experiment",
    "Finetune": "policy",
    "Group": "layer",
    "Halving": "halving",
    "Layer": "layer",
    "LayerPolicy": "policy",
    "Layers": "layer",
    "Limit": "objective",
    "Objective": "objective",
    "ParetoFront": "front",
    "Policy": "policy",
    "Refit": "refitting",
    "Status": "result",
    "Target": "target",
    "Task": "task",
    "TrialResult": "result",
    "load_experiment": "experiment",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    return getattr(import_module(f"autocompress.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
