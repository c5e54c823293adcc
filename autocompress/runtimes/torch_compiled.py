"""The files of `torch_eager`, compiled by TorchInductor when they are first run.

Needs a C++ compiler on CPUs. Compiling takes about half a minute for twenty layers, once for every file: searches with it
should have long trials. In return a file takes a quarter less time than on `torch_eager`.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autocompress import nested
from autocompress.errors import ExportError
from autocompress.nested import Nested
from autocompress.runtimes.torch_eager import TorchSession
from autocompress.target import Target

USAGE = """\
import numpy as np
import torch

model = torch.compile(torch.export.load("{file}").module(), dynamic=False, options={"freezing": True})
inputs = {inputs}
with torch.inference_mode():
    outputs = model({call})
"""

# While a file is timed against another, both are loaded again and again.
_KEPT = 4
_compiled: OrderedDict[tuple[bytes, Target], Callable[..., Any]] = OrderedDict()


class CompiledSession(TorchSession):
    """A loaded file that is compiled for batches of the target's size; others are computed as `TorchSession` does.

    Raises `ExportError` when torch refuses the file; so does a call when torch cannot compile it.
    """

    def __init__(self, model: bytes, target: Target) -> None:
        super().__init__(model, target)
        key = hashlib.sha256(model).digest(), target
        if key not in _compiled:
            # Freezing lays out weights as the kernels want them, once.
            _compiled[key] = torch.compile(self._run, dynamic=False, options={"freezing": True})
        self._quick = _compiled[key]
        _compiled.move_to_end(key)
        while len(_compiled) > _KEPT:
            _compiled.popitem(last=False)

    def run(self, tensors: list[Tensor]) -> Nested:
        if nested.count(tensors) != self._target.batch_size:
            return super().run(tensors)
        try:
            return self._computed(self._quick, tensors)
        except Exception as error:
            raise ExportError(f"torch cannot compile the exported file: {str(error).splitlines()[0]}") from error
