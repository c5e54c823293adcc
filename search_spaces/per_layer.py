"""Sparsity alone, layer by layer: channels out of every group, zeros into every layer, 8 bits everywhere.

A level for the whole network (`channel_sparsity`, `weight_sparsity`) and an offset from it for each group
(``conv1/channel_sparsity_offset``) and layer (``conv1/weight_sparsity_offset``); with `steps` of fine-tuning and
`distill` or not: 4 + groups + layers parameters. Activations are integers.
"""

from collections.abc import Sequence
from functools import partial, update_wrapper

from optuna.trial import BaseTrial

from autocompress.experiment import Space
from autocompress.layer import Layers
from autocompress.policy import Policy
from autocompress.space import integer_bits, quantised, suggest_distill, suggest_shares, suggest_steps
from autocompress.target import Target

STEPS = (100, 200, 400)


def space(trial: BaseTrial, layers: Layers, target: Target, *, steps: Sequence[int] = STEPS) -> Policy:
    menu = target.menu
    bits = max(integer_bits(menu), default=None)
    groups = [group.name for group in layers.groups]
    names = [layer.name for layer in layers] if menu.weight_sparsity else []
    shares = suggest_shares(trial, "channel_sparsity", groups, high=0.875, step=0.125)
    zeros = suggest_shares(trial, "weight_sparsity", names, high=0.8, step=0.1)
    return Policy(
        channel_sparsity=shares,
        layers={layer.name: quantised(bits, menu, weight_sparsity=zeros.get(layer.name, 0.0)) for layer in layers},
        finetune=suggest_steps(trial, steps),
        distill=suggest_distill(trial),
    )


def make(*, steps: Sequence[int] = STEPS) -> Space:
    """This space with other fine-tuning steps: ``space=per_layer.make(steps=(150, 300))``."""
    return update_wrapper(partial(space, steps=steps), space)
