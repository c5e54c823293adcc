"""The experiments that come with the project: their data are what they say, their networks can be compressed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress import LayerPolicy, Policy, nested
from autocompress.compress import compress
from autocompress.compress.channels import prune
from autocompress.errors import ExperimentError
from autocompress.experiment import load_experiment, run_file
from autocompress.measure import outputs_of
from autocompress.probe import probe
from autocompress.runtimes.onnxruntime import export
from autocompress.target import Target
from autocompress.task import Split
from autocompress.unpacked import unpacked

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def test_mnist_is_split_by_class_and_nothing_is_in_two_splits() -> None:
    task = load_experiment(EXPERIMENTS / "mnist_vgg.py").task
    seen: set[bytes] = set()
    sizes: dict[Split, int] = {"train": 3000, "validation": 1000, "test": 1000}
    for split, size in sizes.items():
        images, digits = task.data(split)
        assert images.shape == (size, 1, 28, 28)
        assert images.dtype == np.float32
        assert (images.min(), images.max()) == (0, 1)
        assert np.bincount(digits).tolist() == [size // 10] * 10
        pictures = {image.tobytes() for image in images}
        assert len(pictures) == size
        assert not pictures & seen
        seen |= pictures


def test_the_vgg_has_the_proportions_of_the_article() -> None:
    task = load_experiment(EXPERIMENTS / "mnist_vgg.py").task
    layers = probe(task.model(), torch.tensor(task.data("train")[0][:4]))
    assert [layer.weight_shape for layer in layers] == [(64, 1, 3, 3), (64, 64, 3, 3), (100, 64, 3, 3), (10, 900)]
    assert [group.name for group in layers.groups] == ["conv1", "conv2", "conv3"]


@pytest.mark.parametrize("name", ["cifar10_resnet20", "cifar10_vgg16", "cifar10_mobilenetv2"])
def test_missing_data_are_said_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    with pytest.raises(ExperimentError, match="set CIFAR10_DIR to the folder"):
        load_experiment(EXPERIMENTS / f"{name}.py")
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path))
    with pytest.raises(ExperimentError, match=f"no cifar10_jpeg.npz in {tmp_path}"):
        load_experiment(EXPERIMENTS / f"{name}.py")


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder like that of the data, with noise for pictures."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, size in (("train", 2064), ("test", 16)):
        arrays[f"{split}_x"] = draw.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_y"] = draw.integers(0, 10, size, dtype=np.uint8)
    np.savez(tmp_path / "cifar10_jpeg.npz", **arrays)
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path))
    return tmp_path


def test_resnet20_takes_the_published_weights(cifar: Path) -> None:
    network = _resnet()
    published = {name: value for name, value in network.state_dict().items() if "shortcut" not in name}
    published["linear.bias"] = torch.arange(10.0)
    torch.save(published, cifar / "resnet20_cifar10_jpeg.pt")
    model = load_experiment(EXPERIMENTS / "cifar10_resnet20.py").task.model()
    assert torch.equal(model.get_submodule("linear").bias, torch.arange(10.0))  # type: ignore[arg-type]
    torch.save({"other": torch.zeros(1)}, cifar / "resnet20_cifar10_jpeg.pt")
    with pytest.raises(ExperimentError, match="holds no ResNet-20"):
        load_experiment(EXPERIMENTS / "cifar10_resnet20.py").task.model()


def test_resnet20_shortcuts_pad_and_can_be_pruned(cifar: Path) -> None:
    network = _resnet().eval()
    x = torch.randn(2, 16, 8, 8)
    padded = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(network.get_submodule("layer2.0.shortcut")(x), padded)
    example = torch.randn(4, 3, 32, 32)
    layers = probe(network, example)
    assert len(layers.groups) == 12
    assert all(layer.integer for layer in layers), "a convolution of a class of one's own is a convolution"
    prune(network, {group.name: group.channels // 2 for group in layers.groups}, "l1", example)


def test_vgg16_has_thirteen_convolutions_and_a_width(cifar: Path) -> None:
    task = load_experiment(EXPERIMENTS / "cifar10_vgg16.py").task
    layers = probe(task.model(), torch.randn(2, 3, 32, 32))
    assert [layer.kind for layer in layers] == ["conv2d"] * 13 + ["linear"]
    assert [layer.weight_shape[0] for layer in layers][:3] == [32, 32, 64]
    assert len(layers.groups) == 13


def test_mobilenetv2_is_pruned_through_its_residuals_and_exported(cifar: Path) -> None:
    task = load_experiment(EXPERIMENTS / "cifar10_mobilenetv2.py").task
    model, images = task.model().eval(), torch.tensor(task.data("train")[0])
    layers = probe(model, images[:4])
    depthwise = [layer for layer in layers if layer.kind == "conv2d" and layer.weight_shape[1] == 1]
    assert (len(layers), len(depthwise), len(layers.groups)) == (53, 17, 25)
    assert all(layer.integer for layer in layers)
    # The channels of a stage go together: a sum of its blocks has as many as each of them.
    assert [len(group.writers) for group in layers.groups if group.channels == 32] == [4]
    for activation_bits in (None, 8):
        policy = Policy(
            channel_sparsity={group.name: 0.5 for group in layers.groups},
            layers={layer.name: LayerPolicy(weight_bits=4, activation_bits=activation_bits) for layer in layers},
            repair=False,
        )
        student = compress(model, policy.canonical(layers, Target().menu), images[:32], groups=layers.groups)
        file = export(student, images[:4])
        given = outputs_of(file, images[:16].numpy(), Target())
        with torch.no_grad():
            expected = student(images[:16]).numpy()
        assert given.shape == expected.shape == (16, 10)
        # Fifty untrained layers make another output of a tie that is rounded another way.
        assert activation_bits or np.allclose(given, expected, atol=1e-4)
        # Half of the inputs and outputs are left, in half a byte each, and what goes with them.
        assert len(file) < sum(layer.params for layer in layers) * 4 / 12


@pytest.mark.parametrize("name", ["cifar10_vgg16", "cifar10_mobilenetv2"])
def test_networks_without_published_weights_are_trained_from_scratch(name: str, cifar: Path) -> None:
    task = load_experiment(EXPERIMENTS / f"{name}.py").task
    inputs, targets = (torch.tensor(part).repeat_interleave(2, 0) for part in task.data("train"))
    model = task.model()
    before = {name: value.clone() for name, value in model.named_parameters()}
    task.epochs = 2  # type: ignore[attr-defined]
    task.train(model, inputs, targets)
    for name, value in model.named_parameters():
        assert value.isfinite().all()
        assert value.is_contiguous()
        assert not torch.equal(value, before[name])


def test_augmentation_keeps_the_shape_and_follows_the_generator(cifar: Path) -> None:
    task = load_experiment(EXPERIMENTS / "cifar10_vgg16.py").task
    images = torch.tensor(task.data("train")[0])
    first, again = (task.augment(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == images.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, images)


def _resnet() -> nn.Module:
    model: nn.Module = run_file(EXPERIMENTS / "cifar10_resnet20.py").ResNet20()
    return model


def test_sentences_of_documentation_are_in_one_split_only() -> None:
    task = load_experiment(EXPERIMENTS / "docs_text.py").task
    sizes: dict[Split, int] = {"train": 5400, "validation": 1200, "test": 1200}
    seen: set[bytes] = set()
    for split, size in sizes.items():
        inputs, labels = task.data(split)
        assert inputs["ids"].shape == inputs["mask"].shape == (size, 24)
        assert np.array_equal(inputs["mask"], inputs["ids"] != 0)
        assert np.bincount(labels).tolist() == [size // 6] * 6
        rows = {row.tobytes() for row in inputs["ids"]}
        assert len(rows) == size
        assert not rows & seen
        seen |= rows


@pytest.mark.parametrize(("name", "heads", "blocks"), [("docs_text", 4, 2), ("mnist_vit", 4, 3)])
def test_the_width_the_heads_and_the_feed_forward_layers_of_the_transformers_can_be_pruned(
    name: str, heads: int, blocks: int
) -> None:
    task = load_experiment(EXPERIMENTS / f"{name}.py").task
    inputs = nested.take(task.data("train")[0], slice(4))
    layers = probe(unpacked(task.model()), nested.each(torch.tensor, inputs))
    assert [group.channels // group.unit for group in layers.groups] == [64, *[heads, 256] * blocks]
    assert all(layer.integer for layer in layers if layer.kind != "embedding")
