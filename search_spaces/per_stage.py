"""Layers that work at one resolution form a stage; a stage is treated alike.

A level for the whole network (`channel_sparsity`, `weight_sparsity`, `weight_bits`) and an offset from each for every
stage (``stage1/channel_sparsity_offset``, ``stage1/weight_sparsity_offset``, ``stage1/weight_bits_offset``); with
`steps` of fine-tuning and `distill` or not: 5 + up to 3 x stages parameters. A VGG or ResNet for small pictures has
four or five stages, the classifier among them. The first and the last layer get at least 6 bits; activations are
integers.
"""

import math
from collections.abc import Sequence
from functools import partial, update_wrapper

from optuna.trial import BaseTrial

from autocompress.experiment import Space
from autocompress.layer import Layer, Layers
from autocompress.policy import Policy
from autocompress.space import keep_ends, quantised, suggest_distill, suggest_shares, suggest_steps, suggest_weight_bits
from autocompress.target import Target

STEPS = (100, 200, 400)


def space(trial: BaseTrial, layers: Layers, target: Target, *, steps: Sequence[int] = STEPS) -> Policy:
    menu = target.menu
    stage_of = stages(layers)
    names = list(dict.fromkeys(stage_of.values()))
    with_groups = list(dict.fromkeys(stage_of[group.name] for group in layers.groups))
    shares = suggest_shares(trial, "channel_sparsity", with_groups, high=0.875, step=0.125)
    zeros = suggest_shares(trial, "weight_sparsity", names if menu.weight_sparsity else [], high=0.8, step=0.1)
    bits = suggest_weight_bits(trial, names, menu)
    bits_of = keep_ends({layer: bits[stage] for layer, stage in stage_of.items()}, layers, menu)
    return Policy(
        channel_sparsity={group.name: shares[stage_of[group.name]] for group in layers.groups},
        layers={
            layer: quantised(bits_of[layer], menu, weight_sparsity=zeros.get(stage, 0.0)) for layer, stage in stage_of.items()
        },
        finetune=suggest_steps(trial, steps),
        distill=suggest_distill(trial),
    )


def stages(layers: Layers) -> dict[str, str]:
    """The stage of each layer by name: layers with the same number of output positions (pixels, tokens) are in one."""
    positions = list(dict.fromkeys(_positions(layer) for layer in layers))
    return {layer.name: f"stage{positions.index(_positions(layer)) + 1}" for layer in layers}


def make(*, steps: Sequence[int] = STEPS) -> Space:
    """This space with other fine-tuning steps: ``space=per_stage.make(steps=(150, 300))``."""
    return update_wrapper(partial(space, steps=steps), space)


def _positions(layer: Layer) -> int:
    return layer.macs // math.prod(layer.weight_shape)
