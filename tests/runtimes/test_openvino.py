"""OpenVINO restores packed weights when it loads a file, and runs what is quantised in integer kernels."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compress import compress
from autocompress.errors import ExportError, InputError
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes.openvino import SETTINGS, OpenVinoSession, _core, export
from autocompress.student import StudentLayer
from autocompress.target import Target
from autocompress.testing import toy_student

TARGET = Target(runtime="openvino")
EXAMPLE = torch.zeros(4, 1, 8, 8)


def executed(student: nn.Module) -> list[tuple[str, str]]:
    """What OpenVINO really executes: kinds of operations, and in what precision."""
    openvino: Any = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(export(student, EXAMPLE)), "CPU", SETTINGS)
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in told]
    return [kind for kind in kinds if kind[0] not in ("Const", "Reshape", "Reorder")]


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_runs_in_integer_kernels(bits: int, zeros: float) -> None:
    found = executed(toy_student(LayerPolicy(weight_bits=bits, activation_bits=8, weight_sparsity=zeros)))
    assert found.count(("Convolution", "u8")) == 3
    assert found.count(("FullyConnected", "u8")) == 1
    assert {kind for kind, _ in found} <= {"Input", "FakeQuantize", "Convolution", "Pooling", "FullyConnected", "Output"}


@pytest.mark.parametrize("layer", [LayerPolicy(weight_bits=3), LayerPolicy(weight_sparsity=0.9)])
def test_weights_alone_are_restored_once(layer: LayerPolicy) -> None:
    convolutions = [kind for kind, _ in executed(toy_student(layer))].count("Convolution")
    assert convolutions == 3
    assert not {"Gather", "ScatterElementsUpdate", "CumSum", "NonZero"} & {kind for kind, _ in executed(toy_student(layer))}


@pytest.mark.parametrize("how", [LayerPolicy(weight_sparsity=0.5), LayerPolicy(weight_bits=3, activation_bits=8)])
@pytest.mark.parametrize("name", ["conv1", "head"])
def test_a_layer_of_zeros_alone_is_loaded(name: str, how: LayerPolicy) -> None:
    pytest.importorskip("openvino")
    student = toy_student(how)
    layer = student.get_submodule(name)
    assert isinstance(layer, StudentLayer)
    with torch.no_grad():
        layer.weight.zero_()
        images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = student(images).numpy()
    given = OpenVinoSession(export(student, EXAMPLE), TARGET)(images.numpy())
    assert np.abs(given - expected).max() <= 0.02 * np.abs(expected).max()


class Patches(nn.Module):
    """The beginning of a vision transformer, whose convolution has outputs of either sign and a bias of some weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(tokens.shape[0], -1, -1)
        outputs: Tensor = self.head(torch.cat([first, tokens], 1))
        return outputs


def test_the_bias_of_patches_is_kept() -> None:
    pytest.importorskip("openvino")
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    policy = Policy(layers={"patches": LayerPolicy(weight_bits=4, activation_bits=8)})
    student = compress(Patches().eval(), policy, images)
    with torch.no_grad():
        expected = student(images).numpy()
    given = OpenVinoSession(export(student, images[:4]), TARGET)(images.numpy())
    assert np.abs(given - expected).max() <= 0.02 * np.abs(expected).max()


def test_without_openvino_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    for use in (lambda: export(toy_student(), EXAMPLE), lambda: OpenVinoSession(b"", TARGET)):
        with pytest.raises(InputError, match=r"not installed: pip install 'autocompress\[openvino\]'"):
            use()


def test_it_runs_on_cpus() -> None:
    with pytest.raises(InputError, match="given 'cuda'"):
        OpenVinoSession(b"", Target(runtime="openvino", device="cuda"))


def test_what_it_refuses_is_one_error() -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ExportError, match="OpenVINO refuses the exported file: Unable to read the model"):
        OpenVinoSession(b"not a model", TARGET)
