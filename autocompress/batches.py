"""Batches of a split that stays what it is: arrays that all processes of a machine share, read-only, or a file."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from autocompress import nested
from autocompress.nested import Nested
from autocompress.task import Array


def examples_of(part: Nested, which: slice | Array | Tensor, device: torch.device) -> Nested:
    """Some examples of `part`, arrays or tensors, as tensors of their own on `device`: they may be written to.

    `which` is a slice, or their places (n,).
    """
    return nested.each(lambda array: _copy(array, which).to(device), part)


def in_order(part: Nested, size: int, device: torch.device) -> Iterator[Nested]:
    """All of them, `size` at a time; the last may have fewer."""
    return (examples_of(part, slice(at, at + size), device) for at in range(0, nested.count(part), size))


def _copy(array: Array | Tensor, which: slice | Array | Tensor) -> Tensor:
    if isinstance(which, slice):
        taken = array[which]
        return taken.clone() if isinstance(taken, Tensor) else torch.tensor(taken)
    if isinstance(array, Tensor):
        return array[torch.as_tensor(which, device=array.device)]
    return torch.from_numpy(np.ascontiguousarray(array[np.asarray(which)]))
