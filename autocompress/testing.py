"""What the author of a task, a space, a runtime or a driver tests with: small tasks that train in a second."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.compress import compress
from autocompress.errors import ExportError
from autocompress.nested import Nested
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import Runtime, Session, runtime_of
from autocompress.runtimes.slot import Slot
from autocompress.target import Target
from autocompress.task import Array, ClassificationTask, Split


class ToyNet(nn.Module):
    """Two convolutions with batch norm, a residual add and a linear layer: one of everything that pruning must follow."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(images)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        out: Tensor = self.head(self.pool(x).flatten(1))
        return out


class ToyTask(ClassificationTask):
    """Noisy 8x8 pictures of a horizontal bar, a vertical bar, a cross and a square, told apart by `ToyNet`.

    Made by a seeded generator: 256 pictures to train on, 256 to validate, 256 to test.
    """

    def __init__(self, noise: float = 0.6, epochs: int = 6) -> None:
        self.noise = noise
        self.epochs = epochs

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return ToyNet()

    def data(self, split: Split) -> tuple[Array, Array]:
        draw = np.random.default_rng({"train": 1, "validation": 2, "test": 3}[split])
        labels = draw.integers(0, 4, 256)
        pictures = draw.normal(0.0, self.noise, (256, 1, 8, 8)).astype(np.float32)
        for picture, label in zip(pictures[:, 0], labels, strict=True):
            row, column = draw.integers(1, 5, 2)
            if label in (0, 2):
                picture[row + 1, column - 1 : column + 3] += 2
            if label in (1, 2):
                picture[row - 1 : row + 3, column + 1] += 2
            if label == 3:
                picture[row : row + 3, column : column + 3] += 1
        return pictures, labels.astype(np.int64)

    def train(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(self.epochs):
            for batch in torch.randperm(len(inputs)).split(32):
                optimizer.zero_grad()
                self.loss(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()


class NanTask(ToyTask):
    """Its fine-tuning loss is never finite: every trial that trains must end as FAILED. The baseline trains as usual."""

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs * float("nan")


class FailingTask(ToyTask):
    """Raises in the function named by `where`: what a user's own mistake looks like."""

    def __init__(self, where: Literal["model", "data", "loss", "score", "augment"]) -> None:
        super().__init__()
        self.where = where

    def model(self) -> nn.Module:
        self._fail("model")
        return super().model()

    def data(self, split: Split) -> tuple[Array, Array]:
        self._fail("data")
        return super().data(split)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._fail("loss")
        return super().loss(outputs, targets)

    def score(self, outputs: Array, targets: Array) -> float:
        self._fail("score")
        return super().score(outputs, targets)

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        self._fail("augment")
        return inputs

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(f"a mistake in {where}")


# How far outputs may be from the student's, as a share of their spread: in floats, and where integers round in other places.
_SAME, _ROUNDED = 1e-4, 0.05
# Inputs of the last layer of `ToyNet`, and the most bytes that a few operations take in a file.
_HEAD_INPUTS, _NODES = 256, 1_000


class RuntimeSuite:
    """What every runtime must do, as tests for pytest: derive a class whose name begins with Test, and set `target`.

        class TestBoard(RuntimeSuite):
            target = Target(runtime="board")

    It exports small networks, runs the files on the target and compares them with the students, for each entry of the
    target's menu.
    """

    target: Target

    @property
    def runtime(self) -> Runtime:
        """What is tested."""
        return runtime_of(self.target)

    def test_a_file_does_what_the_student_does_for_batches_of_any_size(self) -> None:
        student = toy_student()
        session = self._session(student)
        for examples in (1, 3, 300, 1, 2):
            pictures = _pictures(examples)
            assert _gap(session(pictures.numpy()), _outputs(student, pictures)) < _SAME, f"{examples} examples"

    def test_weights_of_few_bits(self) -> None:
        whole = self._size(toy_student())
        for bits in self._widths:
            student = toy_student(LayerPolicy(weight_bits=bits))
            assert self._gap(student) < _SAME, f"{bits} bits"
            assert self._size(student) < whole, f"{bits} bits"

    def test_fewer_bits_never_take_more_bytes(self) -> None:
        sizes = [self._size(toy_student(LayerPolicy(weight_bits=bits))) for bits in sorted(self._widths)]
        assert sizes == sorted(sizes)

    def test_integer_activations(self) -> None:
        if 8 not in self.target.menu.activation_bits:
            return
        whole = self._size(toy_student())
        # What wider weights give depends on the CPU.
        for bits in (bits for bits in self._widths if bits <= self.target.menu.integer_weight_bits):
            student = toy_student(LayerPolicy(weight_bits=bits, activation_bits=8))
            assert self._gap(student) < _ROUNDED, f"{bits} bits"
            assert self._size(student) < whole, f"{bits} bits"

    def test_dynamic_ranges_of_activations(self) -> None:
        menu = self.target.menu
        if "dynamic" not in menu.activation_ranges:
            return
        for bits in (bits for bits in self._widths if bits <= menu.integer_weight_bits):
            layer = LayerPolicy(weight_bits=bits, activation_bits=8, activation_range="dynamic")
            assert self._gap(toy_student(layer, names=("head",))) < _ROUNDED, f"{bits} bits"

    def test_scales_for_groups_of_inputs(self) -> None:
        for size, bits in product(self.target.menu.group_sizes, self._widths):
            student = toy_student(LayerPolicy(weight_bits=bits, group_size=size), names=("head",))
            assert self._gap(student) < _SAME, f"{bits} bits, groups of {size}"

    def test_groups_take_the_bytes_of_their_scales(self) -> None:
        whole = self._size(toy_student(LayerPolicy(weight_bits=4), names=("head",)))
        for size in self.target.menu.group_sizes:
            student = toy_student(LayerPolicy(weight_bits=4, group_size=size), names=("head",))
            scales = 4 * 4 * (_HEAD_INPUTS // size - 1)
            assert whole + scales <= self._size(student) <= whole + scales + _NODES, f"groups of {size}"

    def test_zeros(self) -> None:
        if not self.target.menu.weight_sparsity:
            return
        for bits in self.target.menu.weight_bits:
            student = toy_student(LayerPolicy(weight_bits=bits, weight_sparsity=0.9))
            assert self._gap(student) < _SAME, f"{bits} bits"
            assert self._size(student) <= self._size(toy_student(LayerPolicy(weight_bits=bits))), f"{bits} bits"

    def test_zeros_beside_integer_activations(self) -> None:
        menu = self.target.menu
        if not menu.weight_sparsity or 8 not in menu.activation_bits:
            return
        for bits in (bits for bits in self._widths if bits <= menu.integer_weight_bits):
            assert self._gap(toy_student(LayerPolicy(weight_bits=bits, activation_bits=8, weight_sparsity=0.9))) < _ROUNDED

    def test_fewer_channels_take_fewer_bytes(self) -> None:
        cut = toy_student(conv1=0.5, stem=0.5)
        assert self._gap(cut) < _SAME
        assert self._size(cut) < self._size(toy_student())

    def test_the_same_student_is_the_same_file(self) -> None:
        student = toy_student(LayerPolicy(weight_bits=self.target.menu.weight_bits[0]))
        assert self._file(student) == self._file(deepcopy(student))

    def test_the_student_is_left_as_it_is(self) -> None:
        student = toy_student(LayerPolicy(weight_bits=self.target.menu.weight_bits[0]))
        outputs, parts = _outputs(student, _pictures(8)), [type(module) for module in student.modules()]
        self._file(student)
        assert np.array_equal(_outputs(student, _pictures(8)), outputs)
        assert [type(module) for module in student.modules()] == parts

    def test_a_session_tells_its_input(self) -> None:
        assert self._session(toy_student()).inputs == (Slot("input", (1, 8, 8), "float32"),)

    def test_inputs_and_outputs_in_order(self) -> None:
        network, inputs = _InOrder(), (_pictures(5), _words(5))
        session = self.runtime.load(self.runtime.export(network, inputs), self.target)
        assert session.inputs == (Slot("input.0", (1, 8, 8), "float32"), Slot("input.1", (2,), "int64"))
        got = session(nested.each(Tensor.numpy, inputs))
        assert isinstance(got, tuple)
        assert _gap(got, _outputs(network, inputs)) < _SAME

    def test_embeddings_of_few_bits(self) -> None:
        inputs = (_pictures(5), _words(5))
        for bits in self._widths:
            layers = {"words": LayerPolicy(weight_bits=bits)}
            student = compress(_InOrder(), Policy(layers=layers, repair=False), inputs)
            session = self.runtime.load(self.runtime.export(student, inputs), self.target)
            assert _gap(session(nested.each(Tensor.numpy, inputs)), _outputs(student, inputs)) < _SAME, f"{bits} bits"

    def test_inputs_and_outputs_by_name(self) -> None:
        network, inputs = _ByName(), {"words": _words(5), "picture": _pictures(5)}
        session = self.runtime.load(self.runtime.export(network, inputs), self.target)
        assert set(session.inputs) == {Slot("picture", (1, 8, 8), "float32"), Slot("words", (2,), "int64")}
        got = session(nested.each(Tensor.numpy, inputs))
        assert sorted(got) == ["class", "size"]
        assert _gap(got, _outputs(network, inputs)) < _SAME

    def test_what_is_no_file_is_refused(self) -> None:
        whole = self._file(toy_student())
        for content in (b"", b"not a model", bytes(4096), whole[: len(whole) // 2]):
            try:
                self.runtime.load(content, self.target)
            except ExportError:
                continue
            raise AssertionError(f"{content[:16]!r}, {len(content)} bytes, is taken for a file")

    @property
    def _widths(self) -> list[int]:
        return [bits for bits in self.target.menu.weight_bits if bits is not None]

    def _file(self, student: nn.Module) -> bytes:
        return self.runtime.export(student, _pictures(4))

    def _size(self, student: nn.Module) -> int:
        return len(self._file(student))

    def _session(self, student: nn.Module) -> Session:
        return self.runtime.load(self._file(student), self.target)

    def _gap(self, student: nn.Module) -> float:
        pictures = _pictures(64)
        return _gap(self._session(student)(pictures.numpy()), _outputs(student, pictures))


def toy_student(
    layer: LayerPolicy | None = None,
    *,
    names: Sequence[str] = ("stem", "conv1", "conv2", "head"),
    **channel_sparsity: float,
) -> nn.Module:
    """`ToyNet` with the named layers compressed alike, and of some groups that share of the channels removed. Untrained."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = ToyNet().train()
        network(_pictures(64))  # no batch norm is the identity
    layers = dict.fromkeys(names, layer or LayerPolicy())
    return compress(network, Policy(layers=layers, channel_sparsity=channel_sparsity, repair=False), _pictures(64))


class _InOrder(nn.Module):
    """A picture (n, 1, 8, 8) and two words (n, 2) in, two arrays (n, 3) and (n, 4) out."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.words = nn.Linear(64, 3), nn.Embedding(7, 4)
        self.eval()

    def forward(self, picture: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.picture(picture.flatten(1)), self.words(words).mean(1)


class _ByName(_InOrder):
    """The same with names."""

    def forward(self, picture: Tensor, words: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"size": self.words(words).sum(1), "class": self.picture(picture.flatten(1))}


def _pictures(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _words(count: int) -> Tensor:
    return torch.randint(7, (count, 2), generator=torch.Generator().manual_seed(0))


def _outputs(network: nn.Module, inputs: Nested) -> Nested:
    with torch.no_grad():
        return nested.each(Tensor.numpy, nested.call(network, inputs))


def _gap(got: Nested, expected: Nested) -> float:
    """The largest mean difference of an output, as a share of how much that output varies."""
    assert nested.shapes(got) == nested.shapes(expected)
    pairs = zip(nested.arrays(got), nested.arrays(expected), strict=True)
    return max(float(np.abs(ours - theirs).mean() / theirs.std()) for ours, theirs in pairs)
