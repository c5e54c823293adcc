"""A file for torch is run by torch alone, and takes few bytes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.policy import LayerPolicy
from autocompress.runtimes.torch_eager import TorchSession, export
from autocompress.target import Target
from autocompress.testing import toy_student

TARGET = Target(runtime="torch")
PICTURES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))

ALONE = """
import sys
import numpy, torch
with torch.inference_mode():
    outputs = torch.export.load("model.pt2").module()(torch.from_numpy(numpy.load("pictures.npy")))
numpy.save("outputs.npy", outputs.numpy())
print("autocompress" in sys.modules)
"""


def test_torch_alone_runs_it(tmp_path: Path) -> None:
    student = toy_student(LayerPolicy(weight_bits=4, weight_sparsity=0.5))
    (tmp_path / "model.pt2").write_bytes(export(student, PICTURES))
    np.save(tmp_path / "pictures.npy", PICTURES.numpy())
    command = [sys.executable, "-I", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), student(PICTURES).detach(), atol=1e-4)


def test_batch_norm_is_gone_and_weights_are_restored_once() -> None:
    content = export(toy_student(LayerPolicy(weight_bits=4)), PICTURES)
    stored = [str(node.target) for node in torch.export.load(io.BytesIO(content)).graph.nodes if node.op == "call_function"]
    assert not [name for name in stored if "batch_norm" in name]
    assert [name for name in stored if "mul" in name]
    run = TorchSession(content, TARGET)._run
    assert isinstance(run, torch.fx.GraphModule)
    assert not [node for node in run.graph.nodes if "mul" in str(node.target)]


def test_codes_take_their_bits() -> None:
    draw = np.random.default_rng(0)
    student = toy_student(LayerPolicy(weight_bits=4))
    conv = student.get_submodule("conv1.layer")
    assert isinstance(conv, nn.Conv2d)
    sizes = []
    for bits in (4, 4, 2):
        codes = draw.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), conv.weight.shape)
        student.get_submodule("conv1").get_parameter("scale").data.fill_(1.0)
        conv.weight.data = torch.tensor(codes, dtype=torch.float32)
        sizes.append(len(export(student, PICTURES)))
    saved = (np.log2(15) - np.log2(3)) / 8 * conv.weight.numel()
    assert sizes[0] - sizes[2] == pytest.approx(saved, rel=0.15)


def test_the_threads_of_the_process_stay_as_they_are() -> None:
    session = TorchSession(export(toy_student(), PICTURES), Target(runtime="torch", threads=2))
    before = torch.get_num_threads()
    session(PICTURES.numpy())
    assert torch.get_num_threads() == before


def test_rounded_activations_are_refused() -> None:
    with pytest.raises(ExportError, match="activation_bits must be None"):
        export(toy_student(LayerPolicy(weight_bits=8, activation_bits=8)), PICTURES)


def test_a_batch_size_that_is_made_a_number_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.reshape(len(pictures), -1)

    with pytest.raises(ExportError, match=r"torch\.export cannot export the student"):
        export(Fixed(), PICTURES)
