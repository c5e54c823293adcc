"""Everything at once: channels, zeros and bits of every layer, how the rest is fine-tuned, and what the teacher says.

A level for the whole network (`channel_sparsity`, `weight_sparsity`, `weight_bits`), and an offset from it for each
group (``conv1/channel_sparsity_offset``) and each layer (``conv1/weight_sparsity_offset``, ``conv1/weight_bits_offset``).
Of the residual branches some are left out, those of the least ranks (`branches_left_out`, ``conv1/branch_rank``).
Activations are 8 bits, where the kernels are; only of the first and the last layer, which see the picture and make the
scores, the space asks (``conv1/activation_bits``). Also `importance`, `steps`, `learning_rate`, `weight_decay`,
``distill/temperature`` (None: no distillation), ``distill/share`` and ``distill/hint_share``.
In all 12 + groups + 2 x layers parameters, and where there are branches 1 + branches. The first and the last layer get at
least 6 bits; at most 3/4 of the channels and 60 % of the rest go, for the savings multiply: to go further with one of them,
search it alone.

To begin near something known, give levels: ``Experiment(start=({"weight_bits": 4, "channel_sparsity": 0.5},), ...)``,
or let the sensitivities of the network say where: ``Experiment(start=joint.start, ...)``.
"""

from collections.abc import Sequence
from functools import partial, update_wrapper
from typing import Any, get_args

from optuna.trial import BaseTrial

from autocompress.experiment import Space
from autocompress.layer import Layers
from autocompress.policy import Distill, Finetune, Importance, LayerPolicy, Policy
from autocompress.prior import BEGINNINGS, Prior
from autocompress.space import (
    SPREAD,
    integer_bits,
    keep_ends,
    most_left_out,
    quantised,
    suggest_branches,
    suggest_shares,
    suggest_weight_bits,
)
from autocompress.target import Target

STEPS = (100, 200, 400)
_CHANNEL_SPARSITY = (0.75, 0.125)  # the most there is, in steps of
_WEIGHT_SPARSITY = (0.6, 0.1)


def space(trial: BaseTrial, layers: Layers, target: Target, *, steps: Sequence[int] = STEPS) -> Policy:
    menu = target.menu
    groups = [group.name for group in layers.groups]
    left_out = suggest_branches(trial, layers)
    names = [layer.name for layer in layers] if menu.weight_sparsity else []
    shares = suggest_shares(trial, "channel_sparsity", groups, high=_CHANNEL_SPARSITY[0], step=_CHANNEL_SPARSITY[1])
    zeros = suggest_shares(trial, "weight_sparsity", names, high=_WEIGHT_SPARSITY[0], step=_WEIGHT_SPARSITY[1])
    settings: dict[str, LayerPolicy] = {}
    suggested = suggest_weight_bits(trial, [layer.name for layer in layers], menu)
    for name, bits in keep_ends(suggested, layers, menu).items():
        settings[name] = quantised(bits, menu, weight_sparsity=zeros.get(name, 0.0))
    for name in layers.ends:
        if trial.suggest_categorical(f"{name}/activation_bits", menu.activation_bits) is None:
            settings[name] = settings[name].model_copy(update={"activation_bits": None})
    return Policy(
        channel_sparsity=shares | left_out,
        importance=trial.suggest_categorical("importance", get_args(Importance)),
        layers=settings,
        finetune=Finetune(
            steps=trial.suggest_categorical("steps", steps),
            learning_rate=trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-5, 1e-3, log=True),
        ),
        distill=_suggest_distill(trial),
    )


def make(*, steps: Sequence[int] = STEPS) -> Space:
    """This space with other fine-tuning steps: ``space=joint.make(steps=(150, 300))``."""
    return update_wrapper(partial(space, steps=steps), space)


def start(prior: Prior) -> list[dict[str, Any]]:
    """The parameters nearest to up to twelve policies of the prior along the front; steps are left to the sampler."""
    found: list[dict[str, Any]] = []
    for size, time in BEGINNINGS:
        policy = prior.solve(prior.size_at(size), prior.latency_at(time))
        params = nearest_params(policy, prior.layers, prior.target)
        if params not in found:
            found.append(params)
    return found


def nearest_params(policy: Policy, layers: Layers, target: Target) -> dict[str, Any]:
    """The parameters, all but `steps`, whose policy comes nearest to this one."""
    menu = target.menu
    params: dict[str, Any] = {"importance": policy.importance, "learning_rate": 1e-3, "weight_decay": 1e-4}
    params |= {"distill/temperature": 4.0, "distill/share": 0.6, "distill/hint_share": 0.0}
    settings = {layer.name: policy.layers.get(layer.name, LayerPolicy()) for layer in layers}
    if layers.groups:
        shares = {group.name: policy.channel_sparsity.get(group.name, 0.0) for group in layers.groups}
        params |= _level_and_offsets("channel_sparsity", shares, 0.0, *_CHANNEL_SPARSITY)
    if layers.branches:
        left_out = {name: policy.channel_sparsity.get(name) == 1 for name in layers.branches}
        params["branches_left_out"] = min(sum(left_out.values()), most_left_out(layers))
        params |= {f"{name}/branch_rank": 0.25 if out else 0.75 for name, out in left_out.items()}
    if menu.weight_sparsity:
        zeros = {name: setting.weight_sparsity for name, setting in settings.items()}
        params |= _level_and_offsets("weight_sparsity", zeros, 0.0, *_WEIGHT_SPARSITY)
    if widths := integer_bits(menu):
        bits = {name: float(setting.weight_bits or widths[-1]) for name, setting in settings.items()}
        levels = _level_and_offsets("weight_bits", bits, float(widths[0]), float(widths[-1]), 1.0)
        params |= levels | {"weight_bits": int(levels["weight_bits"])}
    return params | {f"{name}/activation_bits": settings[name].activation_bits for name in layers.ends}


def _level_and_offsets(what: str, wanted: dict[str, float], low: float, high: float, step: float) -> dict[str, float]:
    """The level and the offsets that come nearest to what is wanted of each."""

    def offset(level: float, value: float) -> int:
        return min(max(round((min(value, high) - level) / step), -SPREAD), SPREAD)

    def miss(level: float) -> float:
        return sum(abs(level + step * offset(level, value) - value) for value in wanted.values())

    levels = [round(low + step * place, 6) for place in range(round((high - low) / step) + 1)]
    level = min(levels, key=miss)
    return {what: level} | {f"{name}/{what}_offset": offset(level, value) for name, value in wanted.items()}


def _suggest_distill(trial: BaseTrial) -> Distill | None:
    # All three are asked for also when there is no teacher: a space is static.
    temperature = trial.suggest_categorical("distill/temperature", [None, 2.0, 4.0, 8.0])
    share = trial.suggest_float("distill/share", 0.2, 0.8)
    hint_share = trial.suggest_float("distill/hint_share", 0.0, 0.2, step=0.1)
    return None if temperature is None else Distill(temperature=float(temperature), share=share, hint_share=hint_share)
