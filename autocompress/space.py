"""What search spaces have in common, and how one is found by name.

A space is a function ``(trial, layers, target) -> Policy``, or one that takes the prior besides. It asks the trial for
every parameter every time, with the same name and range whatever the others are: Optuna learns how parameters act
together only of those it always sees.
"""

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import search_spaces
from autocompress.errors import ExperimentError, unknown_name
from autocompress.experiment import Space, Start, is_guided, run_file
from autocompress.layer import Layer, Layers
from autocompress.policy import Distill, Finetune, LayerPolicy
from autocompress.target import ActivationRange, Menu

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from autocompress.prior import Prior

# How many steps a layer may lie off the level of the whole network.
SPREAD = 2
# The first and the last layer hold few of the weights, and what goes wrong there reaches every output.
ENDS_BITS = 6


def load_space(name_or_file: str) -> Space:
    """The function `space` of a module in `search_spaces`, or of a Python file.

    Raises `UnknownNameError` for a name that is no space of ours, `ExperimentError` for a file without one.
    """
    space: Space | None = getattr(_module(name_or_file), "space", None)
    if not callable(space):
        raise ExperimentError(f"{name_or_file} defines no function `space(trial, layers, target)`")
    return space


def load_start(name_or_file: str) -> Start | Callable[["Prior"], Start]:
    """What a space that takes the prior would have tried first; of others nothing. Raises as `load_space` does."""
    return getattr(_module(name_or_file), "start", ()) if is_guided(load_space(name_or_file)) else ()


def _module(name_or_file: str) -> ModuleType:
    file = Path(name_or_file)
    if file.suffix == ".py":
        if not file.is_file():
            raise ExperimentError(f"no search space file {name_or_file}")
        return run_file(file.resolve())
    known = [found.name for found in pkgutil.iter_modules(search_spaces.__path__)]
    if name_or_file not in known:
        raise unknown_name("search space", name_or_file, known)
    return import_module(f"search_spaces.{name_or_file}")


def suggest_shares(trial: "BaseTrial", what: str, names: Iterable[str], *, high: float, step: float) -> dict[str, float]:
    """A share for each of `names`: a level for the whole network, and up to `SPREAD` steps more or less, within 0..high.

    Parameters: `what` and ``name/what_offset`` (in steps). Shares drawn one by one would average out: every policy for
    a deep network would be about as small as any other, and nearly all of them too small to work.
    """
    names = list(names)
    if not names:
        return {}
    level = trial.suggest_float(what, 0.0, high, step=step)
    offsets = {name: trial.suggest_int(f"{name}/{what}_offset", -SPREAD, SPREAD) for name in names}
    return {name: round(min(max(level + step * offset, 0.0), high), 6) for name, offset in offsets.items()}


def suggest_branches(trial: "BaseTrial", layers: Layers) -> dict[str, float]:
    """A share of 1 for the group of each branch that is left out: so many of them, at most half, those of the least ranks.

    Parameters: ``branches_left_out`` and ``name/branch_rank``. Drawn one by one, nearly all policies for a deep network would
    lose half of it.
    """
    names = layers.branches
    if not names:
        return {}
    count = trial.suggest_int("branches_left_out", 0, most_left_out(layers))
    ranks = {name: trial.suggest_float(f"{name}/branch_rank", 0.0, 1.0) for name in names}
    return dict.fromkeys(sorted(names, key=lambda name: ranks[name])[:count], 1.0)


def most_left_out(layers: Layers) -> int:
    """How many branches are left out at most."""
    return (len(layers.branches) + 1) // 2


def suggest_weight_bits(trial: "BaseTrial", names: Iterable[str], menu: Menu) -> dict[str, int | None]:
    """Weight bits for each of `names`: a level for the whole network, and up to `SPREAD` more or less, from the menu.

    Parameters: ``weight_bits`` and ``name/weight_bits_offset``. A target that cannot store integers keeps floats.
    """
    choices = integer_bits(menu)
    if not choices:
        return dict.fromkeys(names)
    level = trial.suggest_int("weight_bits", choices[0], choices[-1])
    return {name: nearest(choices, level + trial.suggest_int(f"{name}/weight_bits_offset", -SPREAD, SPREAD)) for name in names}


def keep_ends(bits: dict[str, int | None], layers: Layers, menu: Menu) -> dict[str, int | None]:
    """The same weight bits by layer, but at least `ENDS_BITS` in the first and the last."""
    choices = integer_bits(menu)
    return {
        name: nearest(choices, max(given, ENDS_BITS)) if given is not None and name in layers.ends else given
        for name, given in bits.items()
    }


def suggest_group_size(trial: "BaseTrial", layer: Layer, menu: Menu) -> int | None:
    """How many inputs of a linear layer share a scale, None for all of them. Parameter: ``name/group_size``.

    Asked for layers with more inputs than the least group of the menu has; others have none.
    """
    sizes = [size for size in menu.group_sizes if layer.kind == "linear" and size < layer.channels[1]]
    if not sizes:
        return None
    chosen = trial.suggest_categorical(f"{layer.name}/group_size", [None, *sizes])
    return None if chosen is None else int(chosen)


def suggest_activation_range(trial: "BaseTrial", layer: Layer, menu: Menu) -> ActivationRange:
    """When the range of a linear layer's 8-bit inputs is known. Parameter: ``name/activation_range``, if there is a choice."""
    if layer.kind != "linear" or len(menu.activation_ranges) == 1:
        return menu.activation_ranges[0]
    chosen: Any = trial.suggest_categorical(f"{layer.name}/activation_range", menu.activation_ranges)
    return "dynamic" if chosen == "dynamic" else "static"


def suggest_steps(trial: "BaseTrial", steps: Sequence[int]) -> Finetune:
    """The usual fine-tuning for one of so many steps. Parameter: ``steps``."""
    return Finetune(steps=trial.suggest_categorical("steps", list(steps)))


def suggest_distill(trial: "BaseTrial") -> Distill | None:
    """The usual distillation, or none. Parameter: ``distill``."""
    return Distill() if trial.suggest_categorical("distill", [True, False]) else None


def integer_bits(menu: Menu) -> list[int]:
    """The integer weight widths of the menu, fewest bits first; those that the target can multiply if it has such kernels."""
    widest = menu.integer_weight_bits if 8 in menu.activation_bits else 8
    return sorted(bits for bits in menu.weight_bits if bits is not None and bits <= widest)


def nearest(choices: Sequence[int], wanted: int) -> int:
    """The choice nearest to what is wanted, the smaller of two."""
    return min(choices, key=lambda choice: (abs(choice - wanted), choice))


def quantised(weight_bits: int | None, menu: Menu, *, weight_sparsity: float = 0.0) -> LayerPolicy:
    """A layer with so many weight bits, and integer activations if the target has them and the weights are integers."""
    integer = weight_bits is not None and 8 in menu.activation_bits
    return LayerPolicy(weight_bits=weight_bits, activation_bits=8 if integer else None, weight_sparsity=weight_sparsity)
