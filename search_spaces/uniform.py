"""Every layer alike: what one would try by hand, and what a better space has to beat.

Five parameters: `channel_sparsity` of all groups, `weight_bits` and `weight_sparsity` of all layers, `steps` of
fine-tuning, `distill` or not. The first and the last layer keep 8 bits; activations are integers.
"""

from collections.abc import Sequence
from functools import partial, update_wrapper

from optuna.trial import BaseTrial

from autocompress.experiment import Space
from autocompress.layer import Layers
from autocompress.policy import Policy
from autocompress.space import integer_bits, quantised, suggest_distill, suggest_steps
from autocompress.target import Target

STEPS = (100, 200, 400)


def space(trial: BaseTrial, layers: Layers, target: Target, *, steps: Sequence[int] = STEPS) -> Policy:
    menu = target.menu
    choices = integer_bits(menu)
    share = trial.suggest_float("channel_sparsity", 0.0, 0.875, step=0.125) if layers.groups else 0.0
    bits = trial.suggest_categorical("weight_bits", choices) if choices else None
    zeros = trial.suggest_float("weight_sparsity", 0.0, 0.8, step=0.1) if menu.weight_sparsity else 0.0
    ends = max(choices) if choices else None
    return Policy(
        channel_sparsity={group.name: share for group in layers.groups},
        layers={
            layer.name: quantised(ends if layer.name in layers.ends else bits, menu, weight_sparsity=zeros) for layer in layers
        },
        finetune=suggest_steps(trial, steps),
        distill=suggest_distill(trial),
    )


def make(*, steps: Sequence[int] = STEPS) -> Space:
    """This space with other fine-tuning steps: ``space=uniform.make(steps=(150, 300))``."""
    return update_wrapper(partial(space, steps=steps), space)
