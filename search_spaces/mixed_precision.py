"""Bits alone, layer by layer: nothing is pruned.

A level for the whole network (`weight_bits`), an offset from it for each layer (``conv1/weight_bits_offset``) and its
activation bits (``conv1/activation_bits``); of linear layers also how many inputs share a scale where activations are
floats, if there are more than 32 (``head/group_size``), and whether the range of 8-bit inputs is that of each batch
(``head/activation_range``); with `steps` of fine-tuning and `distill` or not: 3 + 2 x layers + up to 2 x linear layers
parameters. The first and the last layer get at least 6 bits.
"""

from collections.abc import Sequence
from functools import partial, update_wrapper

from optuna.trial import BaseTrial

from autocompress.experiment import Space
from autocompress.layer import Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.space import (
    keep_ends,
    suggest_activation_range,
    suggest_distill,
    suggest_group_size,
    suggest_steps,
    suggest_weight_bits,
)
from autocompress.target import Target

STEPS = (100, 200, 400)


def space(trial: BaseTrial, layers: Layers, target: Target, *, steps: Sequence[int] = STEPS) -> Policy:
    menu = target.menu
    settings: dict[str, LayerPolicy] = {}
    suggested = suggest_weight_bits(trial, [layer.name for layer in layers], menu)
    for name, bits in keep_ends(suggested, layers, menu).items():
        activation_bits = trial.suggest_categorical(f"{name}/activation_bits", menu.activation_bits)
        group_size = suggest_group_size(trial, layers.layer(name), menu)
        activation_range = suggest_activation_range(trial, layers.layer(name), menu)
        settings[name] = (
            LayerPolicy(weight_bits=bits, group_size=group_size)
            if activation_bits is None or bits is None
            else LayerPolicy(weight_bits=bits, activation_bits=8, activation_range=activation_range)
        )
    return Policy(layers=settings, finetune=suggest_steps(trial, steps), distill=suggest_distill(trial))


def make(*, steps: Sequence[int] = STEPS) -> Space:
    """This space with other fine-tuning steps: ``space=mixed_precision.make(steps=(150, 300))``."""
    return update_wrapper(partial(space, steps=steps), space)
