"""Convolutions of codes are exported as floats, and are codes in the file, whatever torch makes of their weights."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from autocompress.compress import compress
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import onnx_graph, onnx_template
from autocompress.runtimes.onnxruntime import OnnxSession, export
from autocompress.target import Target

IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROUNDED = LayerPolicy(weight_bits=4)


def student_of(model: nn.Module, layer: LayerPolicy = ROUNDED) -> nn.Module:
    names = [name for name, part in model.named_modules() if isinstance(part, nn.modules.conv._ConvNd)]
    return compress(model.eval(), Policy(layers=dict.fromkeys(names, layer)), IMAGES)


def check(student: nn.Module, tolerance: float = 1e-5) -> Counter[tuple[int, ...]]:
    """The file does what the student does. Gives how many weights of each shape are codes in it."""
    file = export(student, IMAGES[:4])
    with torch.no_grad():
        expected = student(IMAGES).numpy()
    ours = OnnxSession(file, Target())(IMAGES.numpy())
    assert np.abs(ours - expected).mean() <= tolerance * max(expected.std(), 1e-6)
    tensors = onnx.load_from_string(file).graph.initializer
    return Counter(
        tuple(tensor.dims) for tensor in tensors if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    )


class Chain(nn.Module):
    """Three convolutions of one shape, and whatever else `between` does after each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.stem(images)
        for conv in self.convs:
            x = torch.relu(self.between(conv(x)))
        return x.mean((2, 3))

    def between(self, x: Tensor) -> Tensor:
        return x


class NormedByFunction(Chain):
    mean: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.2, 0.2, 4))
        self.register_buffer("variance", torch.linspace(0.1, 2, 4))

    def between(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.mean, self.variance)


class OfConstants(Chain):
    """Its second convolution is given a tensor of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        x = self.convs[0](self.stem(images)) + self.convs[1](self.places)
        outputs: Tensor = torch.relu(self.convs[2](x)).mean((2, 3))
        return outputs


class TransposedInGroups(Chain):
    """torch folds the batch norm that is not folded here: the scales of its transposed convolution are those of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.convs[1] = nn.ConvTranspose2d(4, 8, 2, groups=2)
        self.convs[2] = nn.Conv2d(8, 4, 3)
        self.norm = nn.BatchNorm2d(8)
        nn.init.normal_(self.norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.convs[1](torch.relu(self.convs[0](self.stem(images)))))
        outputs: Tensor = self.convs[2](torch.relu(x)).mean((2, 3))
        return outputs


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(onnx_template, "_templates", type(onnx_template._templates)())
    counted: list[int] = []
    exported = onnx_graph._exported

    def counting(model: nn.Module, example: Tensor) -> onnx.ModelProto:
        counted.append(1)
        return exported(model, example)

    monkeypatch.setattr(onnx_graph, "_exported", counting)
    return counted


@pytest.mark.parametrize(
    ("layer", "tolerance"), [(ROUNDED, 1e-5), (LayerPolicy(weight_bits=4, activation_bits=8), 0.03)], ids=str
)
def test_equal_weights_are_stored_once_and_used_by_all(layer: LayerPolicy, tolerance: float, exports: list[int]) -> None:
    """torch stores equal tensors once, under the name of the first."""
    student = student_of(Chain(), layer)
    first, second, third = (student.get_submodule(f"convs.{place}") for place in range(3))
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        third.get_parameter("layer.weight").copy_(first.get_parameter("layer.weight"))
        third.get_parameter("scale").copy_(first.get_parameter("scale"))
    codes = check(student, tolerance)
    assert len(exports) == 1
    assert codes[4, 4, 3, 3] == 1


@pytest.mark.parametrize("network", [NormedByFunction, OfConstants, TransposedInGroups])
def test_weights_that_torch_makes_others_of_are_codes_all_the_same(network: type[Chain], exports: list[int]) -> None:
    """It folds a batch norm into the weights before it, and computes what is made of constants: those are exported as codes."""
    codes = check(student_of(network()))
    assert len(exports) == 2
    assert sum(codes.values()) == 4


def test_no_operator_of_our_own_is_in_a_file() -> None:
    file = export(student_of(Chain(), LayerPolicy(weight_bits=4, activation_bits=8)), IMAGES[:4])
    kinds = Counter((node.domain, node.op_type) for node in onnx.load_from_string(file).graph.node)
    assert {domain for domain, _ in kinds} == {""}
    assert kinds["", "QuantizeLinear"] == 5
    assert kinds["", "DequantizeLinear"] == 5 + 4
