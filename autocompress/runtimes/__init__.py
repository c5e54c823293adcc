"""Where a compressed model runs: one module a runtime, all with the same two functions.

`export` turns a student into the content of a file, `load` turns that content into a function from arrays to arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import unknown_name
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.runtimes.onnxruntime import export as export_onnx
from autocompress.target import Target


class Session(Protocol):
    """A loaded file: a batch of inputs (n, ...) in, a batch of outputs out. `example_shape` is one input's, without n."""

    example_shape: tuple[int, ...]

    def __call__(self, inputs: NDArray[Any], /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Runtime:
    """`export(student, example batch) -> file content`, `load(file content, target) -> session`; both raise `ExportError`."""

    export: Callable[[nn.Module, Tensor], bytes]
    load: Callable[[bytes, Target], Session]


_RUNTIMES = {"onnxruntime": Runtime(export=export_onnx, load=OnnxSession)}


def runtime_of(target: Target) -> Runtime:
    """Raises `UnknownNameError` for a runtime nobody has written."""
    if target.runtime not in _RUNTIMES:
        raise unknown_name("runtime", target.runtime, _RUNTIMES)
    return _RUNTIMES[target.runtime]
