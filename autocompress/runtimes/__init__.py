"""Where a compressed model runs: one module a runtime, all with the same few functions.

`export` turns a student into the content of a file, `load` turns that content into a function from arrays to arrays.
`single` makes files of single layers, to tell what each of them costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from autocompress.errors import unknown_name
from autocompress.nested import Nested
from autocompress.runtimes.onnx_layer import layer_file
from autocompress.runtimes.onnx_pack import forms
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.runtimes.onnxruntime import export as export_onnx
from autocompress.runtimes.single import SingleLayer
from autocompress.runtimes.slot import Slot
from autocompress.target import Target


class Session(Protocol):
    """A loaded file: a batch of inputs (n, ...) in, a batch of outputs out, each nested as the network has them."""

    inputs: tuple[Slot, ...]

    def __call__(self, inputs: Nested, /) -> Nested: ...


@dataclass(frozen=True)
class Runtime:
    """`export(student, example batch) -> file content`, `load(file content, target) -> session`; both raise `ExportError`.

    `single` is None where nobody has written it: then a layer's time is guessed by its multiply-accumulates.
    """

    export: Callable[[nn.Module, Nested], bytes]
    load: Callable[[bytes, Target], Session]
    single: SingleLayer | None = None


_RUNTIMES = {
    "onnxruntime": Runtime(export=export_onnx, load=OnnxSession, single=SingleLayer(file=layer_file, forms=forms)),
}


def made_up(slots: Sequence[Slot], examples: int) -> Nested:
    """A batch that a file takes: noise where it wants floats, ones where it wants whole numbers or truth values."""
    draw = np.random.default_rng(0)
    made = tuple(
        draw.standard_normal((examples, *slot.shape)).astype(slot.dtype)
        if np.dtype(slot.dtype).kind == "f"
        else np.ones((examples, *slot.shape), slot.dtype)
        for slot in slots
    )
    return made if len(made) > 1 else made[0]


def runtime_of(target: Target) -> Runtime:
    """Raises `UnknownNameError` for a runtime nobody has written."""
    if target.runtime not in _RUNTIMES:
        raise unknown_name("runtime", target.runtime, _RUNTIMES)
    return _RUNTIMES[target.runtime]
