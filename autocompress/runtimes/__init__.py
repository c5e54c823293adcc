"""Where a compressed model runs: one module a runtime, all with the same few functions.

`export` turns a student into the content of a file, `load` turns that content into a function from arrays to arrays.
`single` makes files of single layers, to tell what each of them costs. `register` adds a runtime of one's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from autocompress.errors import InputError, unknown_name
from autocompress.nested import Nested
from autocompress.runtimes import onnxruntime, openvino, torch_compiled, torch_eager
from autocompress.runtimes.onnx_file import check_alone
from autocompress.runtimes.onnx_layer import layer_file
from autocompress.runtimes.onnx_pack import forms
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.runtimes.onnxruntime import export as export_onnx
from autocompress.runtimes.openvino import OpenVinoSession
from autocompress.runtimes.openvino import export as export_openvino
from autocompress.runtimes.pt2_file import check_plain
from autocompress.runtimes.single import SingleLayer
from autocompress.runtimes.slot import Slot
from autocompress.runtimes.torch_compiled import CompiledSession
from autocompress.runtimes.torch_eager import TorchSession
from autocompress.runtimes.torch_eager import export as export_torch
from autocompress.target import MENUS, Menu, Target


class Session(Protocol):
    """A loaded file: a batch of inputs (n, ...) in, a batch of outputs out, each nested as the network has them."""

    inputs: tuple[Slot, ...]

    def __call__(self, inputs: Nested, /) -> Nested: ...


@dataclass(frozen=True)
class Runtime:
    """`export(student, example batch) -> file content`, `load(file content, target) -> session`; both raise `ExportError`.

    `file` is what files are called, `usage` Python that runs one, for who has no autocompress: ``{file}`` in it stands for the
    name, ``{inputs}`` for a dictionary of inputs, ``{call}`` for how torch is given it. `package` is all that such a process
    needs beside numpy; None where files run elsewhere. `single` is None where nobody has written it: then a layer's time is
    guessed by its multiply-accumulates. `check(file content)` raises `ExportError` for a file that would read others or run
    code of its own; None where `load` alone reads files, and sees to that.
    """

    export: Callable[[nn.Module, Nested], bytes]
    load: Callable[[bytes, Target], Session]
    single: SingleLayer | None = None
    file: str = "model.onnx"
    package: str | None = None
    usage: str = ""
    check: Callable[[bytes], None] | None = None


_RUNTIMES = {
    "onnxruntime": Runtime(
        export=export_onnx,
        load=OnnxSession,
        single=SingleLayer(file=layer_file, forms=forms),
        package="onnxruntime",
        usage=onnxruntime.USAGE,
        check=check_alone,
    ),
    "openvino": Runtime(
        export=export_openvino, load=OpenVinoSession, package="openvino", usage=openvino.USAGE, check=check_alone
    ),
    "torch": Runtime(
        export=export_torch,
        load=TorchSession,
        file=torch_eager.FILE,
        package="torch",
        usage=torch_eager.USAGE,
        check=check_plain,
    ),
    "torch-compiled": Runtime(
        export=export_torch,
        load=CompiledSession,
        file=torch_eager.FILE,
        package="torch",
        usage=torch_compiled.USAGE,
        check=check_plain,
    ),
}
_BUILT_IN = frozenset(_RUNTIMES)


def register(name: str, runtime: Runtime, menu: Menu) -> None:
    """Adds a runtime of one's own, called `name` in a `Target`: a board behind ssh, or another engine on this machine.

    An experiment file that does so is all it takes: every process of a search runs it, and registers anew. Test the runtime
    with `autocompress.testing.RuntimeSuite`. Raises `InputError` for the name of a runtime that is built in.

        class BoardSession:
            def __init__(self, model: bytes, target: Target) -> None:
                self.inputs = OnnxSession(model, target).inputs
                ...  # copy the file to the board; raise ExportError if it refuses it

            def __call__(self, inputs):
                ...  # run it there; arrays in, arrays out

        register("board", Runtime(export=export, load=BoardSession), MENUS["onnxruntime"])
        experiment = Experiment(target=Target(runtime="board"), ...)
    """
    if name in _BUILT_IN:
        raise InputError(f"the runtime {name!r} is built in; give yours another name")
    _RUNTIMES[name] = runtime
    MENUS[name] = menu


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


def file_name(target: Target, place: Target) -> str:
    """What the file for `place`, one of `target.each`, is called in a folder that has the others too."""
    name = runtime_of(place).file
    return name if place.runtime == target.runtime else f"{place.runtime}-{name}"


def runtime_of(target: Target) -> Runtime:
    """Raises `UnknownNameError` for a runtime nobody has written."""
    if target.runtime not in _RUNTIMES:
        raise unknown_name("runtime", target.runtime, _RUNTIMES)
    return _RUNTIMES[target.runtime]
