"""Programs of `torch.export` on torch itself: the export of a student, and a session that runs a file.

The file is what `torch.export.save` writes, but deflated: torch reads it all the same, and codes of few bits and zeros take
few bytes in it. Torch alone runs it, by ``torch.export.load(file).module()``; a call of torch's `constant_fold` on that
restores the weights once instead of at every run. Activations are floats.
"""

import inspect
import io
import zipfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_unflatten

from autocompress import nested
from autocompress.errors import ExportError
from autocompress.graph import BatchNorm, module_of, norm_after, runs_of, settle_attributes, trace
from autocompress.nested import Nested
from autocompress.runtimes.pt2_file import check_plain
from autocompress.runtimes.slot import INPUT, Slot, by_slot
from autocompress.student import (
    ActivationQuantizer,
    Plain,
    StudentLayer,
    apply_layer,
    channel_axis,
    kind_of,
    per_channel,
    per_group,
    plain_of,
)
from autocompress.target import Target

FILE = "model.pt2"
USAGE = """\
import numpy as np
import torch

model = torch.export.load("{file}").module()
inputs = {inputs}
outputs = model({call})
"""


def export(student: nn.Module, example: Nested) -> bytes:
    """The content of the .pt2 file that does what `student` does, for any batch size. `example` is a batch (n, ...), n >= 2.

    Raises `ExportError`.
    """
    example = nested.each(Tensor.cpu, example)
    if any(
        isinstance(module, ActivationQuantizer) or (isinstance(module, StudentLayer) and module.is_dynamic)
        for module in student.modules()
    ):
        raise ExportError("torch has no integer kernels here: activation_bits must be None")
    model = _deployed(deepcopy(student).cpu().eval(), example)
    return _deflated(_saved(_slim(_exported(model, example))))


class TorchSession:
    """A loaded file: arrays in, arrays out. Raises `ExportError` when torch refuses the file."""

    def __init__(self, model: bytes, target: Target) -> None:
        from torch._inductor.constant_folding import constant_fold  # with it comes torch's compiler: a second or two

        program = _loaded(model, target)
        given = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        self._structure = program.call_spec.in_spec
        assert self._structure is not None
        in_order, by_name = tree_unflatten([given[name] for name in program.graph_signature.user_inputs], self._structure)
        known = nested.named(by_name or (in_order if len(in_order) > 1 else in_order[0]), INPUT)
        self.inputs = tuple(
            Slot(name, tuple(value.shape[1:]), str(value.dtype).removeprefix("torch.")) for name, value in known.items()
        )
        self._target = target
        module = program.module(check_guards=False)
        assert isinstance(module, GraphModule)
        constant_fold(module)
        self._run: Callable[..., Any] = module

    def __call__(self, inputs: Nested) -> Nested:
        """The outputs for a batch (n, ...), nested as those of the network; `inputs` by name, or in order."""
        known = by_slot(inputs, self.inputs)
        tensors = [torch.tensor(known[slot.name], device=self._target.device) for slot in self.inputs]
        return nested.each(lambda part: part.cpu().numpy(), self.run(tensors))

    def run(self, tensors: list[Tensor]) -> Nested:
        """The outputs for tensors in the order of `inputs`."""
        return self._computed(self._run, tensors)

    def _computed(self, function: Callable[..., Any], tensors: list[Tensor]) -> Nested:
        in_order, by_name = tree_unflatten(tensors, self._structure)
        threads = torch.get_num_threads()  # of the whole process, which may train as well
        try:
            torch.set_num_threads(self._target.threads)
            with torch.inference_mode():
                return function(*in_order, **by_name)
        finally:
            torch.set_num_threads(threads)


class _DeployedLayer(nn.Module):
    """A layer whose weight is `factor`, or int8 `codes` times `factor`: scales of shape (out, 1, ...), or (out, groups)."""

    codes: Tensor | None
    factor: Tensor
    bias: Tensor | None

    def __init__(self, layer: Plain, codes: Tensor | None, factor: Tensor, bias: Tensor | None, group_size: int | None) -> None:
        super().__init__()
        self.group_size = group_size
        self.layer = deepcopy(layer)
        for name in list(self.layer._parameters):  # its settings are wanted, and no weights
            self.layer.register_parameter(name, None)
        self.register_buffer("codes", codes)
        self.register_buffer("factor", factor.detach().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        return apply_layer(self.layer, inputs, self.weight, self.bias)

    @property
    def weight(self) -> Tensor:
        if self.codes is None:
            return self.factor
        if self.group_size is None:
            return self.codes * self.factor
        return self.codes * per_group(self.factor, self.group_size, self.codes.shape[1])


def _deployed(student: nn.Module, example: Nested) -> nn.Module:
    graph = trace(student, example)
    if graph is None:  # batch norm stays where it is
        for name, module in list(student.named_modules()):
            if isinstance(module, StudentLayer):
                student.set_submodule(name, _deploy(module, None))
        return student
    settle_attributes(graph)
    for node in list(graph.graph.nodes):
        module = module_of(node, graph)
        if not (isinstance(module, StudentLayer) or (isinstance(module, Plain) and kind_of(module) is not None)):
            continue
        runs = runs_of(node)
        norm_node = norm_after(node, graph) if runs == 1 else None  # one weight cannot take in two batch norms
        norm = module_of(norm_node, graph)
        if norm_node is not None:
            norm_node.replace_all_uses_with(node)
            graph.graph.erase_node(norm_node)
        if isinstance(module, StudentLayer) or norm is not None:
            graph.set_submodule(str(node.target), _deploy(module, norm))
    graph.graph.lint()
    graph.recompile()
    return graph


def _deploy(layer: Plain | StudentLayer, norm: nn.Module | None) -> nn.Module:
    plain = plain_of(layer)
    codes, factor = None, layer.effective_weight() if isinstance(layer, StudentLayer) else layer.weight
    if isinstance(layer, StudentLayer) and layer.bits is not None:
        codes, scale = layer.codes()
        factor = per_channel(scale, codes, layer.axis) if layer.group_size is None else scale
    bias = None if isinstance(plain, nn.Embedding) else plain.bias
    if norm is not None:
        assert isinstance(norm, BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean, norm.running_var
        transposed = channel_axis(plain) == 1
        factor, bias = fuse_conv_bn_weights(factor, bias, mean, variance, norm.eps, norm.weight, norm.bias, transposed)
    return _DeployedLayer(plain, codes, factor, bias, layer.group_size if isinstance(layer, StudentLayer) else None)


def _exported(model: nn.Module, example: Nested) -> ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    in_order, by_name = nested.arguments(_as_called(model, example) if isinstance(example, dict) else example)
    any_size: Any = {name: {0: batch} for name in by_name} or tuple({0: batch} for _ in in_order)
    try:
        with torch.no_grad():
            return torch.export.export(model, in_order, by_name, dynamic_shapes=any_size)
    except Exception as error:
        raise ExportError(
            f"torch.export cannot export the student: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _as_called(model: nn.Module, example: dict[str, Any]) -> dict[str, Any]:
    """In the order in which the forward function names them, which torch.export takes for granted."""
    known = [name for name in inspect.signature(model.forward).parameters if name in example]
    return {name: example[name] for name in [*known, *(name for name in example if name not in known)]}


def _slim(program: ExportedProgram) -> ExportedProgram:
    """Without the example, and without what only a debugger reads."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    return program


def _saved(program: ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _deflated(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as stored, zipfile.ZipFile(file, "w") as deflated:
        for part in stored.infolist():
            # Of no date, so that the same student makes the same file.
            name = zipfile.ZipInfo(part.filename)
            deflated.writestr(name, stored.read(part), zipfile.ZIP_DEFLATED, compresslevel=9)
    return file.getvalue()


def _loaded(model: bytes, target: Target) -> ExportedProgram:
    check_plain(model)
    try:
        program = torch.export.load(io.BytesIO(model))
        return program if target.device == "cpu" else move_to_device_pass(program, target.device)
    except Exception as error:
        raise ExportError(f"torch refuses the exported file: {str(error).splitlines()[0]}") from error
