"""The exported file does what the student does, in true integer kernels, at every width on the menu."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autocompress import nested, verify_child
from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.distill import features_of
from autocompress.errors import ExportError, InputError
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.profile.layers import uses
from autocompress.runtimes.onnxruntime import PROVIDERS, OnnxSession, export
from autocompress.target import Device, Target
from autocompress.testing import ToyTask, toy_student

NAMES = ("stem", "conv1", "conv2", "head")
TARGET = Target()


def optimised(file: bytes, folder: Path) -> list[str]:
    """The operators that ONNX Runtime really executes."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def student_of(task: ToyTask, baseline: Baseline, data: Data, layer: LayerPolicy, **policy: object) -> nn.Module:
    whole = Policy.model_validate({"layers": dict.fromkeys(NAMES, layer)} | policy)
    return compress(baseline.model(task), whole, torch.tensor(data["train"][0]))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_runs_in_integer_kernels(
    bits: int, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    student = student_of(toy_task, toy_baseline, toy_data, LayerPolicy(weight_bits=bits, activation_bits=8))
    inputs = toy_data["validation"][0]
    file = export(student, torch.tensor(inputs[:4]))
    operators = optimised(file, tmp_path)
    assert operators.count("QLinearConv") == 3
    assert operators.count("QLinearAdd") == 1
    assert operators.count("QGemm") == 1
    assert not {"Conv", "Gemm", "Add", "DequantizeLinear", "Cast", "Mul"} & set(operators)

    weights = sum(int(np.prod(layer.weight_shape)) for layer in toy_baseline.layers)
    channels = sum(layer.weight_shape[0] for layer in toy_baseline.layers)
    assert len(file) < weights * bits / 8 + 9 * channels + 3_200
    if bits > TARGET.menu.integer_weight_bits:  # what comes out depends on the CPU
        return
    seen = np.concatenate([toy_data[split][0] for split in ("train", "validation")])
    inputs = np.concatenate([seen, seen[..., ::-1]])[:1000]
    ours, theirs = OnnxSession(file, TARGET)(inputs), student(torch.tensor(inputs)).detach().numpy()
    assert len(ours) == 1000
    # Where a value lies between two steps, float and integer arithmetic may round it to different ones.
    assert np.abs(ours - theirs).mean() < 0.02 * theirs.std()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.995


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_alone_become_floats_at_load(
    bits: int, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    student = student_of(toy_task, toy_baseline, toy_data, LayerPolicy(weight_bits=bits))
    inputs = toy_data["validation"][0]
    file = export(student, torch.tensor(inputs[:4]))
    assert not {"DequantizeLinear", "Cast", "Mul"} & set(optimised(file, tmp_path))
    np.testing.assert_allclose(OnnxSession(file, TARGET)(inputs), student(torch.tensor(inputs)).detach(), atol=1e-3)
    assert len(file) < len(toy_baseline.file) * bits / 32 + 4_000


def test_zeros_shrink_the_file_and_keep_the_kernels(
    toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    files = [
        export(student_of(toy_task, toy_baseline, toy_data, layer), torch.tensor(toy_data["train"][0][:4]))
        for layer in (
            LayerPolicy(weight_bits=7, activation_bits=8),
            LayerPolicy(weight_bits=7, activation_bits=8, weight_sparsity=0.8),
            LayerPolicy(weight_sparsity=0.8),
        )
    ]
    assert len(files[1]) < 0.65 * len(files[0])
    assert len(files[2]) < 0.35 * len(toy_baseline.file)
    assert optimised(files[1], tmp_path) == optimised(files[0], tmp_path)


def test_a_batch_norm_with_negative_scales_is_folded(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    student = student_of(toy_task, toy_baseline, toy_data, LayerPolicy(weight_bits=4, activation_bits=8))
    norm = student.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[::2].mul_(-1)
    inputs = toy_data["validation"][0]
    ours = OnnxSession(export(student, torch.tensor(inputs[:4])), TARGET)(inputs)
    theirs = student(torch.tensor(inputs)).detach().numpy()
    assert np.abs(ours - theirs).mean() < 0.02 * theirs.std()


def test_pruned_students_are_exported(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    layer = LayerPolicy(weight_bits=4, activation_bits=8)
    whole = student_of(toy_task, toy_baseline, toy_data, layer)
    cut = student_of(toy_task, toy_baseline, toy_data, layer, channel_sparsity={"conv1": 0.5, "stem": 0.5})
    example = torch.tensor(toy_data["train"][0][:4])
    assert len(export(cut, example)) < len(export(whole, example))
    assert optimised(export(cut, example), tmp_path).count("QLinearConv") == 3


def test_the_graph_carries_nothing_but_the_network(toy_baseline: Baseline) -> None:
    model = onnx.load_from_string(toy_baseline.file)
    onnx.checker.check_model(model, full_check=True)
    weights = sum(4 * int(np.prod(layer.weight_shape)) for layer in toy_baseline.layers)
    assert len(toy_baseline.file) < weights + 2_000
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "output"]


def test_a_network_that_cannot_be_traced_is_exported_with_float_activations(toy_data: Data) -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv(images)
            if x.shape[1] != int(x.shape[1]) + len(str(x.dim())) - 1:
                raise RuntimeError
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    calibration = torch.tensor(toy_data["train"][0])
    student = compress(Choosy(), Policy(layers={"conv": LayerPolicy(weight_bits=4)}), calibration)
    ours = OnnxSession(export(student, calibration[:4]), TARGET)(toy_data["train"][0])
    np.testing.assert_allclose(ours, student(calibration).detach(), atol=1e-4)


def test_what_onnx_runtime_refuses_is_one_error() -> None:
    with pytest.raises(ExportError, match="ONNX Runtime refuses the exported file"):
        OnnxSession(b"not a model", TARGET)


def parity(network: nn.Module, layer: LayerPolicy | None, *, size: int = 8, channels: int = 1) -> float:
    """The mean difference between student and file as a share of the spread of the outputs, all layers compressed alike."""
    images = torch.randn(64, channels, size, size, generator=torch.Generator().manual_seed(0))
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    policy = Policy(layers={} if layer is None else dict.fromkeys(names, layer))
    student = compress(network.eval(), policy, images)
    ours = OnnxSession(export(student, images[:4]), TARGET)(images.numpy())
    theirs = student(images).detach().numpy()
    return float(np.abs(ours - theirs).mean() / theirs.std())


# As a trial would have it: 8 bits overflow on CPUs without VNNI.
INTEGER = LayerPolicy(weight_bits=7, activation_bits=8)


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(*layers)
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            nn.init.normal_(module.weight, std=0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return network


def test_a_channel_without_weights_keeps_its_bias() -> None:
    conv, linear, norm = nn.Conv2d(1, 8, 3), nn.Linear(8, 8), nn.BatchNorm2d(8)
    network = chain(
        conv, nn.ReLU(), nn.Conv2d(8, 8, 3), norm, nn.AvgPool2d(4), nn.Flatten(), linear, nn.ReLU(), nn.Linear(8, 4)
    )
    with torch.no_grad():
        conv.weight[::2] = 0
        linear.weight[::2] = 0
        norm.weight[::3] = 0
    assert parity(network, INTEGER) < 0.03


@pytest.mark.parametrize("layer", [None, INTEGER])
def test_batch_norms_that_cannot_be_folded_stay(layer: LayerPolicy | None) -> None:
    no_statistics = nn.BatchNorm2d(8, track_running_stats=False)
    assert parity(chain(nn.Conv2d(1, 8, 3), no_statistics, nn.AvgPool2d(6), nn.Flatten(), nn.Linear(8, 4)), layer) < 0.03
    on_rows = chain(nn.Flatten(2), nn.Linear(64, 1), nn.BatchNorm1d(1), nn.Flatten(), nn.Linear(1, 4))
    assert parity(on_rows, layer) < 0.03


def test_a_layer_that_is_called_twice_keeps_float_activations() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.linear = nn.Flatten(), nn.Linear(64, 64)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.linear(20 * torch.relu(self.linear(self.flat(images))))
            return out

    # With integers before and after it, ONNX Runtime would round its weights by itself.
    assert parity(Twice(), INTEGER) < 1e-4


@pytest.mark.parametrize("middle", [None, LayerPolicy(weight_bits=4), LayerPolicy(weight_sparsity=0.5)])
@pytest.mark.parametrize("kernel", ["QLinearConv", "QGemm"])
def test_a_layer_of_floats_stays_one_between_integers(kernel: str, middle: LayerPolicy | None, tmp_path: Path) -> None:
    """A layer computes in what its policy says. ONNX Runtime would round float weights by itself, to 8 bits."""
    if kernel == "QLinearConv":
        convolutions = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        network = chain(*convolutions, nn.Flatten())
    else:
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        network = chain(nn.Flatten(), *network)
    first, between, last = (name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
    layers = {first: INTEGER, last: INTEGER} | ({} if middle is None else {between: middle})
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = compress(network.eval(), Policy(layers=layers), images)
    file = export(student, images[:4])
    assert optimised(file, tmp_path).count(kernel) == (2 if kernel == "QGemm" else 1)  # the last convolution gives floats
    ours, theirs = OnnxSession(file, TARGET)(images.numpy()), student(images).detach().numpy()
    assert np.abs(ours - theirs).mean() < 0.002 * theirs.std()


@pytest.mark.parametrize("after", [nn.ReLU, nn.ReLU6, nn.GELU])
def test_a_linear_layer_before_floats_is_computed_in_integers(after: type[nn.Module], tmp_path: Path) -> None:
    """ONNX Runtime fuses a ReLU with a float product, and would turn the weights into floats at every run."""
    network = chain(nn.Flatten(), nn.Linear(64, 64), after(), nn.Linear(64, 4))
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = compress(network.eval(), Policy(layers={"1": INTEGER}), images)
    assert optimised(export(student, images[:4]), tmp_path).count("QGemm") == 1
    alone = chain(nn.Flatten(), nn.Linear(64, 64), after())
    student = compress(alone.eval(), Policy(layers={"1": INTEGER}), images)
    # What the network gives is never rounded; the weights are not turned into floats at every run, the inputs are.
    assert optimised(export(student, images[:4]), tmp_path).count("DequantizeLinear") <= 1


def test_padding_by_reflection_is_kept() -> None:
    network = chain(
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(8, 4)
    )
    assert parity(network, INTEGER) < 0.03


class Keywords(nn.Module):
    """Calls its layers by keyword, or by position."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn, self.conv2 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.head, self.named = nn.Linear(8, 3), named

    def forward(self, images: Tensor) -> Tensor:
        if self.named:
            x = torch.relu(self.bn(input=self.conv1(input=images)))
            out: Tensor = self.head(input=torch.relu(self.conv2(input=x)).mean((2, 3)))
        else:
            x = torch.relu(self.bn(self.conv1(images)))
            out = self.head(torch.relu(self.conv2(x)).mean((2, 3)))
        return out


def test_layers_may_be_called_with_a_keyword(tmp_path: Path) -> None:
    policy = Policy(layers=dict.fromkeys(("conv1", "conv2", "head"), LayerPolicy(weight_bits=3, activation_bits=8)))
    inputs = torch.randn(64, 1, 8, 8)
    files, outputs, shapes = [], [], []
    for named in (True, False):
        model = Keywords(named=named).eval()
        student = compress(model, policy, inputs)
        files.append(export(student, inputs[:4]))
        with torch.no_grad(), features_of(student, "head") as features:
            outputs.append(student(inputs))
        assert features[0].shape == (64, 8)
        found = uses(model, inputs[:2], probe(model, inputs[:4]), Target())
        shapes.append([use.shapes for use in found])
    # Repaired alike too.
    assert files[0] == files[1]
    assert torch.equal(*outputs)
    assert shapes[0] == shapes[1]
    np.testing.assert_allclose(OnnxSession(files[0], Target())(inputs.numpy()), outputs[0], atol=0.02)
    assert optimised(files[0], tmp_path).count("QLinearConv") == 2


def test_a_shape_may_be_computed() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

        def forward(self, clips: Tensor) -> Tensor:
            clip, frames, height, width = clips.shape
            x = torch.relu(self.conv(clips.reshape(clip * frames, 1, height, width))).mean((2, 3))
            out: Tensor = self.head(x).reshape(clip, frames, 3).mean(1)
            return out

    assert parity(Frames(), None, channels=2) < 1e-4


class Attending(nn.Module):
    """One head of attention over five vectors, in the way that `how` says."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how
        self.query, self.key, self.value, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (layer(x).unsqueeze(1) for layer in (self.query, self.key, self.value))
        given: dict[str, Any] = {"is_causal": True} if "causal" in self.how else {}
        if "masked" in self.how:
            given["attn_mask"] = (mask > 0 if "truths" in self.how else mask).unsqueeze(1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, **given)
        outputs: Tensor = self.head(attended.squeeze(1).amax(1))
        return outputs


@pytest.mark.parametrize("how", [{}, {"masked": True}, {"masked": True, "truths": True}, {"causal": True}], ids=str)
def test_attention_is_a_few_operations_and_linear_layers_in_it_compute_in_integers(
    how: dict[str, bool], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = Attending(**how).eval(), (torch.randn(64, 5, 8), torch.randn(64, 5, 5) + 2)
    policy = Policy(layers=dict.fromkeys(("query", "key", "value", "head"), LayerPolicy(weight_bits=7, activation_bits=8)))
    student = compress(model, policy, inputs)
    file = export(student, nested.take(inputs, slice(4)))
    with torch.no_grad():
        expected = student(*inputs).numpy()
    got = OnnxSession(file, TARGET)(tuple(part.numpy() for part in inputs))
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
    kinds = Counter(optimised(file, tmp_path))
    assert kinds["MatMulIntegerToFloat"] == 3
    assert kinds["QGemm"] == 1
    assert kinds["DequantizeLinear"] == 0
    if "causal" not in how:
        assert kinds.total() <= 20, kinds


def test_without_cuda_a_file_for_cuda_runs_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the CPU it would be timed as if that were the GPU; ONNX Runtime itself only warns."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime knows CUDA")
    file, target = export(toy_student(), torch.zeros(2, 1, 8, 8)), Target(device="cuda")
    said = r"the target onnxruntime-cuda needs the CUDAExecutionProvider .* CPUExecutionProvider; install onnxruntime-gpu "
    with pytest.raises(InputError, match=said):
        OnnxSession(file, target)
    # One that knows CUDA and cannot load it falls back on the CPU as well.
    known = [name for name, _ in PROVIDERS["cuda"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    with pytest.raises(InputError, match=said):
        OnnxSession(file, target)

    (tmp_path / "model.onnx").write_bytes(file)
    np.savez(tmp_path / "inputs.npz", np.zeros((2, 1, 8, 8), np.float32))
    devices: dict[Device, int] = {"cpu": 0, "cuda": 1}
    for device, returned in devices.items():
        job = {"model": str(tmp_path / "model.onnx"), "inputs": ["input"], "package": "onnxruntime", "threads": 1}
        (tmp_path / "job.json").write_text(json.dumps(job | {"providers": PROVIDERS[device]}))
        command = [sys.executable, "-I", verify_child.__file__, "score", str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == returned, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("ONNX Runtime has no CUDAExecutionProvider here, only ")


def test_without_tensorrt_neither() -> None:
    file, target = export(toy_student(), torch.zeros(2, 1, 8, 8)), Target.parse("onnxruntime-tensorrt")
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(
            InputError, match=r"needs the TensorrtExecutionProvider .* with the TensorRT, CUDA and cuDNN it was"
        ):
            OnnxSession(file, target)


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA in ONNX Runtime")
def test_on_a_real_gpu_a_file_gives_what_it_gives_on_the_cpu() -> None:
    file, inputs = export(toy_student(), torch.zeros(2, 1, 8, 8)), np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
    there, here = (OnnxSession(file, Target(device=device))(inputs) for device in ("cuda", "cpu"))
    assert np.abs(there - here).max() <= 1e-2 * np.abs(here).max()
