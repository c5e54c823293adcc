"""What a forward function asks of its layers is answered in the exported file too."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.compress import compress
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import runtime_of
from autocompress.student import StudentLayer
from autocompress.target import Target

CODES, INTEGER = LayerPolicy(weight_bits=4), LayerPolicy(weight_bits=7, activation_bits=8)
GROUPS = LayerPolicy(weight_bits=4, group_size=32)
DYNAMIC = LayerPolicy(weight_bits=7, activation_bits=8, activation_range="dynamic")


class Asks(nn.Module):
    """Casts to the type of its weights, as Hugging Face's vision transformers do."""

    def __init__(self, *, traceable: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.head = nn.Conv2d(1, 64, 3), nn.Linear(64, 64), nn.Linear(64, 4)
        self.traceable = traceable

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.conv(images.to(self.conv.weight.dtype))).mean((2, 3))
        x = torch.relu(self.hidden(x.to(self.hidden.weight.dtype)))
        out: Tensor = self.head(x) * self.head.weight.shape[0]
        return out if self.traceable or out.dtype == self.head.weight.dtype else out.to(self.head.weight.dtype)


# Activations of a network that cannot be traced have no ranges that are known beforehand.
CASES = [
    *(("onnxruntime", how, traceable) for how in (None, CODES, GROUPS, DYNAMIC) for traceable in (True, False)),
    ("onnxruntime", INTEGER, True),
    *(("torch", how, traceable) for how in (None, CODES, GROUPS) for traceable in (True, False)),
]


@pytest.mark.parametrize(("runtime", "how", "traceable"), CASES)
def test_a_layer_is_asked_for_the_type_and_the_shape_of_its_weight(
    runtime: str, how: LayerPolicy | None, traceable: bool
) -> None:
    network, images = Asks(traceable=traceable).eval(), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = {} if how is None else {"hidden": how} | ({"conv": how, "head": how} if how in (CODES, INTEGER) else {})
    student = compress(network, Policy(layers=layers), images)
    of = runtime_of(Target(runtime=runtime))
    given = of.load(of.export(student, images[:4]), Target(runtime=runtime))(images.numpy())
    expected = student(images).detach().numpy()
    assert isinstance(given, np.ndarray)
    assert np.abs(given - expected).mean() < 0.03 * expected.std()


class Tied(nn.Module):
    """Its weights are read beside the layers: the words' for the logits of the next, the convolution's for the way back."""

    def __init__(self, *, traceable: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden = nn.Embedding(32, 64), nn.Linear(64, 64)
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.traceable = traceable
        self.norm(torch.randn(8, 8, 4, 4) * 3 + 1)  # no batch norm is the identity

    def forward(self, words: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        if not self.traceable and images.dtype != self.conv.weight.dtype:
            images = images.to(self.conv.weight.dtype)
        x = torch.relu(self.hidden(self.words(words).mean(1).to(self.hidden.weight.device)))
        y = torch.relu(self.norm(self.conv(images.to(self.conv.weight.device))))
        back = nn.functional.conv_transpose2d(y, self.conv.weight, stride=1)
        assert self.conv.bias is not None
        return nn.functional.linear(x, self.words.weight), back + self.conv.bias.mean()


THREE, SPARSE = LayerPolicy(weight_bits=3), LayerPolicy(weight_sparsity=0.5)
TIED = [
    *((runtime, how, True) for runtime in ("onnxruntime", "torch") for how in (None, THREE)),
    *((runtime, THREE, False) for runtime in ("onnxruntime", "torch")),
    ("onnxruntime", SPARSE, True),
    ("onnxruntime", INTEGER, True),
    ("openvino", THREE, True),
]


@pytest.mark.parametrize(("runtime", "how", "traceable"), TIED)
def test_a_weight_that_is_read_is_the_one_that_the_layer_has(runtime: str, how: LayerPolicy | None, traceable: bool) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    draw = torch.Generator().manual_seed(0)
    network = Tied(traceable=traceable).eval()
    inputs = torch.randint(32, (64, 5), generator=draw), torch.randn(64, 1, 8, 8, generator=draw)
    layers = {} if how is None else {"words": LayerPolicy(weight_bits=how.weight_bits), "hidden": how, "conv": how}
    student = compress(network, Policy(layers=layers), inputs)
    if how is THREE:
        conv = student.get_submodule("conv")
        assert isinstance(conv, StudentLayer)
        assert not torch.equal(conv.weight, conv.layer.weight)
    of, target = runtime_of(Target(runtime=runtime)), Target(runtime=runtime)
    given = of.load(of.export(student, nested.take(inputs, slice(4))), target)(nested.each(Tensor.numpy, inputs))
    with torch.no_grad():
        pairs = list(zip(given, nested.call(student, inputs), strict=True))
    assert all(np.abs(got - expected.numpy()).mean() < 0.01 * expected.std() for got, expected in pairs)
