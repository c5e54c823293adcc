"""A few coefficients, of which the prior makes a policy for every layer: each fits the limits before it is trained.

`size_budget` is a size, from 0 (the largest worth searching) to 1 (the smallest) on a logarithmic scale, and `latency_budget`
a time, from 0 (that of the mildest policy) to 1 (the least worth searching). The policy is the one of least summed
divergence that keeps to both, leaning as the others say: `sparsity_trade` makes removed channels, branches and zeros dearer
(above 1) or cheaper than bits, ``stage1/sensitivity`` to ``stage3/sensitivity`` make the first, second and last third of the
network more sensitive than it was measured to be. `finetune` says whether the repaired student is trained at all,
``distill/temperature`` and ``distill/share`` how, and `learning_rate`: that of the boldest policies, for the less a student
has lost, the sooner a high rate takes more from it than it gives back (milder ones get it times the root of their
boldness). In all 10 parameters, with several `steps` 11.

`start` gives parameters along the whole front to begin with, ``Experiment(space=budgeted.space, start=budgeted.start)``:
without fine-tuning, which takes seconds, so that there is a front before anything has been trained, and something to choose
from of what is (`Refit`).
"""

import math
from collections.abc import Sequence
from functools import partial, update_wrapper
from typing import Any

from optuna.trial import BaseTrial

from autocompress.errors import InputError
from autocompress.experiment import Space
from autocompress.layer import Layers
from autocompress.policy import Distill, Finetune, Policy
from autocompress.prior import BEGINNINGS, Leaning, Prior
from autocompress.target import Target

STEPS = 200
# No policy has a smaller share of the rate.
_MILDEST = 0.1


def space(trial: BaseTrial, layers: Layers, target: Target, prior: Prior, *, steps: int | Sequence[int] = STEPS) -> Policy:
    if (prior.layers, prior.target) != (layers, target):
        raise InputError("the prior was made for another network or target")
    size = prior.size_at(trial.suggest_float("size_budget", 0.0, 1.0))
    time = prior.latency_at(trial.suggest_float("latency_budget", 0.0, 1.0))
    leaning = Leaning(
        sparsity_trade=trial.suggest_float("sparsity_trade", 0.25, 4.0, log=True),
        stages=(_suggest_sensitivity(trial, 1), _suggest_sensitivity(trial, 2), _suggest_sensitivity(trial, 3)),
    )
    trains = trial.suggest_categorical("finetune", [True, False])
    length = steps if isinstance(steps, int) else trial.suggest_categorical("steps", list(steps))
    rate = trial.suggest_float("learning_rate", 2e-3, 8e-3, log=True)
    distill = Distill(
        temperature=trial.suggest_float("distill/temperature", 2.0, 8.0, log=True),
        share=trial.suggest_float("distill/share", 0.3, 0.9),
    )
    policy = prior.solve(size, time, leaning=leaning)
    rate = float(f"{rate * max(_MILDEST, math.sqrt(prior.boldness(policy))):.3g}")
    finetune = Finetune(steps=length if trains else 0, learning_rate=rate)
    return policy.model_copy(update={"finetune": finetune, "distill": distill})


def make(*, steps: int | Sequence[int] = STEPS) -> Space:
    """This space with other fine-tuning steps: a number, or several to choose from, ``budgeted.make(steps=(150, 300))``."""
    return update_wrapper(partial(space, steps=steps), space)


def start(prior: Prior) -> list[dict[str, Any]]:
    """Up to twelve sets of parameters along the front, without fine-tuning. No two give the same policy."""
    others = {"sparsity_trade": 1.0} | {f"stage{stage}/sensitivity": 1.0 for stage in (1, 2, 3)}
    others |= {"finetune": False, "learning_rate": 4e-3, "distill/temperature": 4.0, "distill/share": 0.6}
    found: dict[str, dict[str, Any]] = {}
    for size, time in BEGINNINGS:
        policy = prior.solve(prior.size_at(size), prior.latency_at(time))
        found.setdefault(policy.key(), {"size_budget": size, "latency_budget": time} | others)
    return list(found.values())


def _suggest_sensitivity(trial: BaseTrial, stage: int) -> float:
    return trial.suggest_float(f"stage{stage}/sensitivity", 0.5, 2.0, log=True)
