"""Inputs, targets and outputs of one part or of several: an array, or a tuple or a dictionary of such, examples first.

What is said of arrays holds for tensors.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# An array, or a tuple or a dictionary (names as keys) of what is nested.
Nested = Any
Path = tuple[str, ...]


def each(function: Callable[[Any], Any], nested: Nested) -> Nested:
    """The same structure with `function` of each array. A list becomes a tuple, and what is None is left out."""
    if isinstance(nested, Mapping):
        return {str(name): each(function, part) for name, part in nested.items() if part is not None}
    if isinstance(nested, list | tuple):
        return tuple(each(function, part) for part in nested if part is not None)
    return function(nested)


def arrays(nested: Nested) -> list[Any]:
    """All arrays in order."""
    return [array for _, array in _paths(nested)]


def named(nested: Nested, name: str) -> dict[str, Any]:
    """All arrays by name: a single one is called `name`, those of a tuple ``name.0``, ``name.1``, ..., of a dictionary by key.

    Names of inner parts follow that of the outer one and a dot.
    """
    outer = () if isinstance(nested, Mapping) else (name,)
    return {".".join((*outer, *path)): array for path, array in _paths(nested)}


def restored(known: Mapping[str, Any], name: str) -> Nested:
    """What `named` made those names of; a dictionary with the only key `name` comes back as an array."""
    paths = {tuple(full.split(".")): array for full, array in known.items()}
    if all(path[0] == name for path in paths):
        paths = {path[1:]: array for path, array in paths.items()}
    return _restored(paths)


def count(nested: Nested) -> int:
    """The number of examples. Raises `ValueError` when the parts do not agree."""
    counts = {len(array) for array in arrays(nested)}
    if len(counts) != 1:
        raise ValueError(f"parts of different lengths: {sorted(counts)}" if counts else "no arrays")
    return counts.pop()


def take(nested: Nested, which: Any) -> Nested:
    """Some of the examples: `which` is a slice, or an array of their places."""
    return each(lambda array: array[which], nested)


def split(nested: Nested, size: int) -> Iterator[Nested]:
    """Batches of so many examples in order; the last may have fewer."""
    return (take(nested, slice(at, at + size)) for at in range(0, count(nested), size))


def join(batches: Sequence[Nested]) -> Nested:
    """All examples of batches of one structure, in order."""
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: join([batch[name] for batch in batches]) for name in first}
    if isinstance(first, tuple):
        return tuple(join(parts) for parts in zip(*batches, strict=True))
    return torch.cat(list(batches)) if isinstance(first, Tensor) else np.concatenate(list(batches))


def arguments(inputs: Nested) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is given for a batch: in order, and by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def call(model: nn.Module, inputs: Nested) -> Nested:
    """What `model` gives for a batch: a tuple is given as its arguments, a dictionary as its keywords.

    It is given copies: a network may change its inputs in place, and most batches are views of a whole split.
    """
    in_order, by_name = arguments(each(torch.clone, inputs))
    outputs = model(*in_order, **by_name)
    return outputs if isinstance(outputs, Tensor) else each(lambda part: part, outputs)


def shapes(nested: Nested) -> str:
    """The structure in words, e.g. ``(8, 3, 32, 32)`` or ``ids (8, 12), mask (8, 12)``."""
    if not isinstance(nested, Mapping | list | tuple):
        return str(tuple(nested.shape)) if hasattr(nested, "shape") else type(nested).__name__
    return ", ".join(f"{path} {shapes(array)}" for path, array in named(nested, "").items())


def _paths(nested: Nested) -> Iterator[tuple[Path, Any]]:
    if not isinstance(nested, Mapping | list | tuple):
        yield (), nested
        return
    parts: Iterable[tuple[Any, Any]] = nested.items() if isinstance(nested, Mapping) else enumerate(nested)
    for key, part in parts:
        for path, array in _paths(part):
            yield (str(key), *path), array


def _restored(paths: Mapping[Path, Any]) -> Nested:
    if () in paths:
        return paths[()]
    keys = dict.fromkeys(path[0] for path in paths)
    parts = {key: _restored({path[1:]: array for path, array in paths.items() if path[0] == key}) for key in keys}
    return tuple(parts.values()) if all(key.isdigit() for key in parts) else parts


def digest(*parts: Nested) -> str:
    """Twelve characters that tell arrays from others: of their names, types, shapes and values."""
    found = hashlib.sha256()
    for part in parts:
        for name, array in named(part, "").items():
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]
