"""Every architecture of the zoo, from probe to exported file. None is trained: what counts is that each step keeps its word.

Whatever is said of "the file" is measured on the exported file, run by ONNX Runtime.
"""

from collections.abc import Iterator
from functools import cache
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.compress import compress
from autocompress.graph import BatchNorm
from autocompress.layer import Layers
from autocompress.nested import Nested
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.runtimes import runtime_of
from autocompress.student import StudentLayer, channel_axis, kind_of, largest_code
from autocompress.target import Target
from autocompress.unpacked import unpacked
from tests.models.zoo import ZOO, made

TARGET = Target()
EXAMPLES = 64
# Shares of how much outputs differ from example to example. Integer kernels round at other places than torch does.
SAME, ROUNDED = 1e-4, 0.1
# Each layer takes the next one.
ENTRIES = [
    *(LayerPolicy(weight_bits=bits) for bits in range(2, 9)),
    *(LayerPolicy(weight_bits=bits, activation_bits=8) for bits in (4, 7)),
    LayerPolicy(weight_sparsity=0.5),
    LayerPolicy(weight_bits=3, weight_sparsity=0.8),
]

pytestmark = pytest.mark.parametrize("name", ZOO)


@cache
def subject(name: str) -> tuple[nn.Module, Nested, Layers]:
    model, inputs = unpacked(made(name)), nested.each(lambda part: part, ZOO[name].inputs(EXAMPLES))
    return model, inputs, probe(model, nested.take(inputs, slice(8)))


def outputs_of(model: nn.Module, inputs: Nested) -> Nested:
    with torch.no_grad():
        return nested.each(lambda part: part.numpy(), nested.call(model, inputs))


def file_of(model: nn.Module, inputs: Nested) -> bytes:
    return runtime_of(TARGET).export(model, nested.take(inputs, slice(8)))


@cache
def uncompressed_file(name: str) -> bytes:
    model, inputs, _ = subject(name)
    return file_of(model, inputs)


def run(file: bytes, inputs: Nested) -> Nested:
    return runtime_of(TARGET).load(file, TARGET)(nested.each(Tensor.numpy, inputs))


def gap(got: Nested, expected: Nested) -> float:
    """The largest difference of an output, as a share of how much that output differs from example to example."""
    assert nested.shapes(got) == nested.shapes(expected)
    pairs = zip(nested.arrays(got), nested.arrays(expected), strict=True)
    return max(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - theirs.mean(0))) for ours, theirs in pairs)


def cut(layers: Layers, share: float) -> dict[str, float]:
    return {group.name: share for group in layers.groups}


def entries(layers: Layers) -> Iterator[tuple[str, LayerPolicy]]:
    return zip((layer.name for layer in layers), cycle(ENTRIES), strict=False)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outside_of_layers(model: nn.Module) -> int:
    """Numbers that stand in the file beside weights and biases of layers; a batch norm is folded into one."""
    counted = [module for module in model.modules() if kind_of(module) is not None or isinstance(module, BatchNorm)]
    within = {value for module in counted for value in module.parameters()}
    return parameters(model) - sum(value.numel() for value in within)


def test_all_of_it_is_seen(name: str) -> None:
    model, _, layers = subject(name)
    seen = {layer.name for layer in layers}
    grouped = {layer for group in layers.groups for layer in group.writers}
    assert seen >= grouped.union(*(group.readers for group in layers.groups))
    for matrix, _ in ((matrix, value) for matrix, value in model.named_parameters() if value.dim() > 1):
        assert (
            matrix.rpartition(".")[0] in seen or matrix in layers.left_alone or matrix.rpartition(".")[0] in layers.left_alone
        )
    assert all(layer.name in grouped or layer.name in layers.left_alone or layer.kind == "embedding" for layer in layers)
    assert all(layers.left_alone.values())


def test_taken_apart_it_is_the_same(name: str) -> None:
    model, inputs, _ = subject(name)
    assert gap(outputs_of(model, inputs), outputs_of(made(name), inputs)) < SAME


def test_the_empty_policy_changes_nothing(name: str) -> None:
    model, inputs, layers = subject(name)
    student = compress(model, Policy(), inputs, groups=layers.groups)
    assert all(map(np.array_equal, *(nested.arrays(outputs_of(net, inputs)) for net in (student, model))))
    assert gap(run(uncompressed_file(name), inputs), outputs_of(model, inputs)) < SAME


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_pruned(name: str, share: float) -> None:
    model, inputs, layers = subject(name)
    if not layers.groups:
        pytest.skip("nothing of it can be pruned")
    policy = Policy(channel_sparsity=cut(layers, share)).canonical(layers, TARGET.menu)
    student = compress(model, policy, inputs, groups=layers.groups)
    assert nested.shapes(outputs_of(student, inputs)) == nested.shapes(outputs_of(model, inputs))
    assert (parameters(student) < parameters(model)) == bool(policy.channel_sparsity)
    for layer, (inputs_left, outputs_left) in policy.widths(layers, TARGET.menu).items():
        weight = student.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        shape = list(weight.shape[:2])
        assert [outputs_left, inputs_left] == (shape[::-1] if channel_axis(student.get_submodule(layer)) else shape), layer
    whole, left = (policy.extra_bytes(layers, TARGET.menu) for policy in (Policy(), policy))
    assert 4 * (outside_of_layers(model) - outside_of_layers(student)) == whole - left


def test_quantised_at_each_width(name: str) -> None:
    model, inputs, layers = subject(name)
    for bits in range(2, 9):
        student = compress(model, Policy(layers={layer.name: LayerPolicy(weight_bits=bits) for layer in layers}), inputs)
        students = [module for module in student.modules() if isinstance(module, StudentLayer)]
        assert students
        assert all(int(module.codes()[0].abs().max()) <= largest_code(bits) for module in students)
    assert gap(outputs_of(student, inputs), outputs_of(model, inputs)) < ROUNDED


def test_the_file_is_the_student_and_smaller(name: str) -> None:
    model, inputs, layers = subject(name)
    policy = Policy(channel_sparsity=cut(layers, 0.5), layers=dict(entries(layers))).canonical(layers, TARGET.menu)
    student = compress(model, policy, inputs, groups=layers.groups)
    file = file_of(student, inputs)
    assert gap(run(file, inputs), outputs_of(student, inputs)) < ROUNDED
    assert len(file) < len(uncompressed_file(name))


def test_without_branches(name: str) -> None:
    model, inputs, layers = subject(name)
    branches = [group for group in layers.groups if group.branch]
    if not branches:
        pytest.skip("it has none that can be left out")
    left_out = branches[1::2] or branches  # without any attention the class token of a ViT would see no picture
    shares = cut(layers, 0.3) | {group.name: 1.0 for group in left_out}
    policy = Policy(channel_sparsity=shares, layers=dict(entries(layers))).canonical(layers, TARGET.menu)
    student = compress(model, policy, inputs, groups=layers.groups)
    there = {module for module, _ in student.named_modules()}
    assert not any(there & set(group.branch) for group in left_out)
    assert there >= set(policy.widths(layers, TARGET.menu))
    file = file_of(student, inputs)
    assert gap(run(file, inputs), outputs_of(student, inputs)) < ROUNDED
    assert len(file) < len(uncompressed_file(name))


def test_in_integers(name: str) -> None:
    model, inputs, layers = subject(name)
    policy = Policy(layers={layer.name: LayerPolicy(weight_bits=7, activation_bits=8) for layer in layers})
    student = compress(model, policy.canonical(layers, TARGET.menu), inputs)
    expected = outputs_of(student, inputs)
    assert gap(run(file_of(student, inputs), inputs), expected) < ROUNDED
    assert gap(expected, outputs_of(model, inputs)) < 2 * ROUNDED
