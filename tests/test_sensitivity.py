"""The fast way to measure options gives what the plain way gives, and the cache gives what was measured."""

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.baseline import Baseline, Data
from autocompress.compress import compress, cut
from autocompress.compress.calibrate import reestimate_batch_norm
from autocompress.compress.repair import look, repair_weights
from autocompress.compress.weights import compress_weights
from autocompress.errors import AutocompressError, SurgeryError, TaskError
from autocompress.experiment import load_experiment
from autocompress.graph import trace
from autocompress.option import Option, options
from autocompress.sensitivity import _key, cache_file, divergences_of, sense, stored
from autocompress.tables import Sensitivity
from autocompress.testing import ToyNet, ToyTask
from tests.toy import call, write_experiment

Measured = dict[Option, float | None]

EXAMPLES = 128
OPTIONS = (
    Option(what="channel_sparsity", name="stem", value=0.5),  # the first layer, and a residual stream
    Option(what="channel_sparsity", name="conv1", value=0.75),
    Option(what="channel_sparsity", name="conv1", value=1.0),
    Option(what="weight_bits", name="stem", value=2),
    Option(what="weight_bits", name="conv1", value=3),
    Option(what="weight_bits", name="head", value=4),
    Option(what="weight_sparsity", name="conv2", value=0.7),
    Option(what="weight_sparsity", name="head", value=0.85),
    Option(what="activation_bits", name="stem", value=8),
    Option(what="activation_bits", name="conv2", value=8),
    Option(what="activation_bits", name="head", value=8),
)


class InPlaceNet(ToyNet):
    """Changes its values where they lie, as many networks do."""

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu_(self.stem_bn(self.stem(images)))
        y = torch.relu_(self.bn1(self.conv1(x)))
        x += self.bn2(self.conv2(y))
        out: Tensor = self.head(self.pool(torch.relu_(x)).flatten(1))
        return out


class UntraceableNet(ToyNet):
    """Its forward depends on the values it sees."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if bool(images.isfinite().all()) else images.nan_to_num())


class ChangingNet(ToyNet):
    def forward(self, images: Tensor) -> Tensor:
        images += 1
        return super().forward(images)


class ChangingTask(ToyTask):
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return ChangingNet()


class InPlaceTask(ToyTask):
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return InPlaceNet()


class UntraceableTask(ToyTask):
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return UntraceableNet()


def measured(wanted: Sequence[Option], task: ToyTask, baseline: Baseline, data: Data) -> Measured:
    return {option: value for option, value, _ in divergences_of(wanted, task, baseline, data)}


def plain(option: Option, task: ToyTask, baseline: Baseline, data: Data) -> float:
    """Everything anew, of the whole network, and one thing after another: compress, re-estimate, compare."""
    # In the order in which they are drawn: repair samples places by their order.
    inputs = torch.tensor(data["train"][0])[np.random.default_rng(0).permutation(len(data["train"][0]))[:EXAMPLES]]
    model = baseline.model(task)
    reestimate_batch_norm(model, inputs)
    policy, groups = option.policy(), baseline.layers.groups
    if option.what == "activation_bits":  # no weight was changed
        student = compress(model, policy.model_copy(update={"repair": False}), inputs)
    else:
        student, kept = cut(deepcopy(model).eval(), policy.channel_sparsity, "l1", inputs, groups=groups)
        compress_weights(student, policy.layers)
        repair_weights(student, look(model, inputs, places_per_input=1), kept, inputs)
    reestimate_batch_norm(student, inputs)
    with torch.no_grad():
        return float(task.divergence(nested.call(student, inputs), nested.call(model, inputs)))


@pytest.mark.parametrize("task", [ToyTask(), InPlaceTask(), ChangingTask()], ids=["plain", "in place", "inputs in place"])
def test_as_the_plain_way_measures_it(task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    baseline = replace(toy_baseline)
    assert trace(baseline.model(task), torch.tensor(toy_data["train"][0][:2])) is not None
    found = measured(OPTIONS, task, baseline, toy_data)
    assert found.keys() == set(OPTIONS)
    for option in OPTIONS:
        # The ranges of 8-bit activations are observed before or after batch norms are re-estimated: it moves their grid.
        assert found[option] == pytest.approx(plain(option, task, baseline, toy_data), rel=0.03, abs=5e-6), option


def test_in_any_order_and_one_by_one(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    together = measured(OPTIONS, toy_task, toy_baseline, toy_data)
    for option in reversed(OPTIONS):
        assert measured([option], toy_task, toy_baseline, toy_data)[option] == pytest.approx(together[option], rel=1e-4)


def test_a_model_that_cannot_be_traced_is_run_as_a_whole(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    task, baseline = UntraceableTask(), replace(toy_baseline)
    assert trace(baseline.model(task), torch.tensor(toy_data["train"][0][:2])) is None
    traced = measured(OPTIONS, toy_task, toy_baseline, toy_data)
    for option, value in measured(OPTIONS, task, baseline, toy_data).items():
        # What comes before the option has batch norms with variances over n in the one case, and over n - 1 in the other:
        # a weight may be rounded the other way.
        graph = option.what == "activation_bits" or (option.what, option.value) == ("channel_sparsity", 1.0)
        expected = None if graph else pytest.approx(traced[option], rel=2e-3, abs=5e-6)
        assert value == expected, option


def test_the_model_and_the_weights_are_left_as_they_were(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    before = {name: array.copy() for name, array in toy_baseline.weights.items()}
    inputs = toy_data["train"][0].copy()
    first = measured(OPTIONS, toy_task, toy_baseline, toy_data)
    assert all(np.array_equal(before[name], array) for name, array in toy_baseline.weights.items())
    assert np.array_equal(inputs, toy_data["train"][0])
    assert measured(OPTIONS, toy_task, toy_baseline, toy_data) == first


def test_an_option_that_changes_nothing_has_no_divergence(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    weights = {name: array.copy() for name, array in toy_baseline.weights.items()}
    weights["conv1.weight"] = np.sign(weights["conv1.weight"]) / 4  # representable in any number of bits
    exact = Option(what="weight_bits", name="conv1", value=4)
    found = measured([exact], toy_task, replace(toy_baseline, weights=weights), toy_data)
    assert found[exact] == pytest.approx(0, abs=1e-7)


class FussyTask(ToyTask):
    """Its divergence is no number where the outputs are far from the reference."""

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        value = super().divergence(outputs, reference)
        return value if value < 0.0001 else value * float("nan")


class Spread:
    """Measures in this process, and counts; `backwards` as if the last option had been answered first."""

    def __init__(self, task: ToyTask, baseline: Baseline, data: Data, *, backwards: bool = False) -> None:
        self.task, self.baseline, self.data, self.backwards = task, baseline, data, backwards
        self.asked = 0

    def __call__(self, wanted: Sequence[Option]) -> Iterator[tuple[Option, float | None, float]]:
        found = list(divergences_of(wanted, self.task, self.baseline, self.data))
        self.asked += len(found)
        return iter(found[::-1] if self.backwards else found)


@pytest.fixture(scope="module")
def sensed(
    toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sensitivity, Path]:
    """All options of the toy network, and the cache they are kept in."""
    cache = tmp_path_factory.mktemp("cache")
    heard: list[tuple[int, int]] = []
    spread = Spread(toy_task, toy_baseline, toy_data)
    table = sense(toy_task, toy_baseline, toy_data, spread=spread, cache=cache, heard=lambda *done: heard.append(done))
    assert heard == [(count, spread.asked) for count in range(1, spread.asked + 1)]
    return table, cache


Sensed = tuple[Sensitivity, Path]


def test_every_option_of_the_menu_is_measured(sensed: Sensed, toy_baseline: Baseline, toy_data: Data) -> None:
    table, cache = sensed
    wanted = options(toy_baseline.layers, toy_baseline.target.menu)
    assert tuple(entry.option for entry in table.entries) == wanted
    assert table.divergence == "KL of the outputs, nats"
    assert table.examples == EXAMPLES < len(toy_data["train"][0])
    assert table.seconds > 0
    bits = [table.of(Option(what="weight_bits", name="conv1", value=bits)) or 0 for bits in (2, 3, 4, 8)]
    assert bits == sorted(bits, reverse=True)
    assert Sensitivity.from_json(cache_file(cache, table.key).read_bytes()) == table


def test_the_order_of_answers_does_not_matter(
    sensed: Sensed, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    spread = Spread(toy_task, toy_baseline, toy_data, backwards=True)
    table = sense(toy_task, toy_baseline, toy_data, spread=spread, cache=None)
    assert table.entries == sensed[0].entries


def test_what_is_in_the_cache_is_not_measured(
    sensed: Sensed, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    table, cache = sensed
    spread = Spread(toy_task, toy_baseline, toy_data)
    assert sense(toy_task, toy_baseline, toy_data, spread=spread, cache=cache) == table
    assert spread.asked == 0
    sense(toy_task, toy_baseline, toy_data, spread=spread, cache=cache, fresh=True)
    assert spread.asked == len(table.entries)


@pytest.mark.parametrize("damage", ["cut", "other model", "an option less", "empty"])
def test_a_damaged_cache_is_measured_anew(
    damage: str, sensed: Sensed, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    table = sensed[0]
    content = {
        "cut": table.to_json()[:-40],
        "other model": table.model_copy(update={"key": "0" * 16}).to_json(),
        "an option less": table.model_copy(update={"entries": table.entries[1:]}).to_json(),
        "empty": "",
    }
    file = cache_file(tmp_path, table.key)
    file.write_text(content[damage])
    assert stored(toy_task, toy_baseline, toy_data, tmp_path) is None
    again = sense(toy_task, toy_baseline, toy_data, spread=lambda _: _answers(table), cache=tmp_path)
    assert again.entries == table.entries
    assert Sensitivity.from_json(file.read_bytes()) == again, "mended"


def _answers(table: Sensitivity) -> Iterator[tuple[Option, float | None, float]]:
    return ((entry.option, entry.value, 0.5) for entry in table.entries)


def test_another_model_menu_or_divergence_has_another_key(
    sensed: Sensed, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    cache = sensed[1]
    assert stored(toy_task, toy_baseline, toy_data, cache) is not None

    weights = {name: array.copy() for name, array in toy_baseline.weights.items()}
    weights["conv1.weight"][0, 0, 0, 0] += 1e-3
    assert stored(toy_task, replace(toy_baseline, weights=weights), toy_data, cache) is None
    assert stored(toy_task, replace(toy_baseline, files={"onnxruntime": b"another forward"}), toy_data, cache) is None

    fewer = toy_baseline.layers.model_copy(update={"groups": toy_baseline.layers.groups[:1]})
    assert stored(toy_task, replace(toy_baseline, layers=fewer), toy_data, cache) is None

    inputs, targets = toy_data["train"]
    assert stored(toy_task, toy_baseline, {**toy_data, "train": (inputs + 1, targets)}, cache) is None
    assert stored(FussyTask(), toy_baseline, toy_data, cache) is None


def test_a_divergence_that_was_rewritten_has_another_key(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    """Also one that calls other functions of its class, or was inherited; a class that has none of its own may change."""
    code = "    def {name}(self, outputs, reference):\n        return {factor} * super().divergence(outputs, reference)\n"
    own = "class Own(ToyTask):\n" + code.format(name="divergence", factor="self.far()")

    def key(factor: str, *, task: str, beside: str = "") -> str:
        classes = f"{own}\n    def far(self): return {factor}\n\nclass Heir(Own):\n    pass\n{beside}"
        classes += f"\nclass Plain(ToyTask):\n    factor = {factor}\n"
        file = write_experiment(tmp_path, classes=classes, task=task)
        return _key(load_experiment(file).task, toy_baseline, toy_data, OPTIONS)

    for task in ("Own()", "Heir()"):
        assert key("2", task=task) == key("2", task=task, beside="\n# of another class\n") != key("2 + 1", task=task)
    assert key("2", task="Plain()") == key("2 + 1", task="Plain()")


def test_what_is_not_finite_is_none(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    task, baseline = FussyTask(), replace(toy_baseline)
    table = sense(task, baseline, toy_data, spread=Spread(task, baseline, toy_data), cache=tmp_path)
    assert table.of(Option(what="weight_bits", name="conv1", value=2)) is None
    assert table.of(Option(what="weight_bits", name="conv1", value=8)) is not None
    assert stored(task, baseline, toy_data, tmp_path) == table


class StumblingTask(UntraceableTask):
    """Its network fails with `error` while the layer conv1 has 2 bits."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def model(self) -> nn.Module:
        def stumble(network: nn.Module, _: object) -> None:
            if getattr(network.conv1, "bits", None) == 2:
                raise self.error

        model = super().model()
        model.register_forward_pre_hook(stumble)
        return model


def _stumbled(error: Exception, baseline: Baseline, data: Data, cache: Path) -> tuple[Sensitivity, Sensitivity | None]:
    """What is measured, and what of it is kept. (What has to do with other layers is made up.)"""
    task, baseline = StumblingTask(error), replace(baseline)

    def some(wanted: Sequence[Option]) -> Iterator[tuple[Option, float | None, float]]:
        ours = [option for option in wanted if option.what == "weight_bits" and option.name == "conv1"]
        yield from ((option, 0.1, 0.0) for option in wanted if option not in ours)
        yield from divergences_of(ours, task, baseline, data)

    return sense(task, baseline, data, spread=some, cache=cache), stored(task, baseline, data, cache)


@pytest.mark.parametrize(
    ("error", "lasting"), [(RuntimeError("cuDNN is busy"), False), (SurgeryError("more than its channels changed"), True)]
)
def test_a_table_is_kept_only_if_what_failed_would_fail_again(
    error: Exception, lasting: bool, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    table, kept = _stumbled(error, toy_baseline, toy_data, tmp_path)
    assert table.of(Option(what="weight_bits", name="conv1", value=2)) is None
    assert table.of(Option(what="weight_bits", name="conv1", value=8)) is not None
    assert kept == (table if lasting else None)


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 2 GiB"), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_is_short_is_no_options_fault(
    error: Exception, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    with pytest.raises(type(error)):
        _stumbled(error, toy_baseline, toy_data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_without_finite_outputs_is_an_error(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    weights = {**toy_baseline.weights, "head.bias": np.full(4, np.nan, dtype=np.float32)}
    broken = replace(toy_baseline, weights=weights)
    with pytest.raises(TaskError, match="no option has a finite divergence"):
        sense(toy_task, broken, toy_data, spread=Spread(toy_task, broken, toy_data), cache=None)


def test_what_a_driver_leaves_out_is_an_error(
    sensed: Sensed, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    def one_short(wanted: Sequence[Option]) -> Iterator[tuple[Option, float | None, float]]:
        return ((option, 0.1, 0.0) for option in wanted[1:])

    with pytest.raises(AutocompressError, match=r"1 of \d+ options were not measured"):
        sense(toy_task, toy_baseline, toy_data, spread=one_short, cache=None)


def test_a_mistake_in_the_divergence_is_not_hidden(toy_baseline: Baseline, toy_data: Data) -> None:
    class Mistaken(ToyTask):
        def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
            raise RuntimeError("a mistake in divergence")

    with pytest.raises(RuntimeError, match="a mistake in divergence"):
        measured(OPTIONS[:1], Mistaken(), replace(toy_baseline), toy_data)


def test_a_cache_that_cannot_be_written_costs_nothing(
    sensed: Sensed, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = tmp_path / "file" / "sensitivity"
    assert stored(toy_task, toy_baseline, toy_data, cache) is None
    table = sense(toy_task, toy_baseline, toy_data, spread=lambda _: _answers(sensed[0]), cache=cache)
    assert table.entries == sensed[0].entries


def test_the_command_measures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy_run: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    file, figures = write_experiment(tmp_path), tmp_path / "figures.json"
    assert call("sense", file, "--run", toy_run, "--driver", "local", "-o", figures) == 0
    out = capsys.readouterr().out
    (kept,) = (tmp_path / "home").rglob("*.json")
    assert f"worker-seconds, kept in {kept}" in out
    for name in ("stem", "conv1", "conv2", "head"):
        assert re.search(rf"^{name} +[\d.]+ ", out, re.MULTILINE), name
    assert "KL of the outputs, nats, on 128 training inputs" in out
    assert figures.read_bytes() == kept.read_bytes()

    assert call("sense", file, "--driver", "local") == 0, "the same model, made anew"
    assert f"read from {kept}" in capsys.readouterr().out
    before = kept.read_bytes()
    assert call("sense", file, "--run", toy_run, "--driver", "local", "--fresh") == 0
    assert "worker-seconds" in capsys.readouterr().out
    assert json.loads(kept.read_bytes())["seconds"] != json.loads(before)["seconds"]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_experiment(tmp_path)
    for wrong in (
        (tmp_path / "gone.py",),
        (file, "--run", tmp_path / "gone"),
        (file, "--driver", "loca"),
        (file, "--driver", "local", "--concurrency", "3"),
    ):
        assert call("sense", *wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
