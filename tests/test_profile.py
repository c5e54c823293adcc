"""The cost table: layers as the network applies them, a fit to whole policies, and files that come from elsewhere."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress import runtimes
from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.errors import InputError
from autocompress.lane import Lane
from autocompress.layer import Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.profile import load_costs, profile
from autocompress.profile.fitting import fit
from autocompress.profile.layers import Use, uses
from autocompress.profile.single import layer_costs, without_slow_moments
from autocompress.profile.whole import Point, spread_policies
from autocompress.runtimes import runtime_of
from autocompress.runtimes.single import LayerShape, Manner, SingleLayer
from autocompress.tables import CostTable, LayerCosts
from autocompress.target import Menu, Target
from autocompress.testing import ToyTask
from tests.nets import resnet20, vgg
from tests.tables_made import made_costs
from tests.toy import call, write_experiment

MENU = Target().menu
FLOAT = LayerPolicy()
INTEGER = LayerPolicy(weight_bits=8, activation_bits=8)


@pytest.fixture(scope="module")
def toy_costs(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> CostTable:
    return profile(toy_task, toy_baseline, toy_data, policies=6)


def toy_file(policy: Policy, task: ToyTask, baseline: Baseline, data: Data) -> bytes:
    inputs = torch.tensor(data["train"][0][:64])
    return runtime_of(baseline.target).export(
        compress(baseline.model(task), policy, inputs, groups=baseline.layers.groups), inputs[:8]
    )


def test_sizes_of_other_policies_are_predicted(
    toy_costs: CostTable, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    layers = toy_baseline.layers
    for policy in spread_policies(layers, MENU, 3, seed=99):
        size = len(toy_file(policy, toy_task, toy_baseline, toy_data))
        # A branch takes its sum along, too, and its nodes in the graph.
        nodes = 250 * len(policy.left_out(layers.groups)) / 2
        assert toy_costs.size_bytes(policy, layers) == pytest.approx(size, rel=0.05, abs=nodes)
    assert toy_costs.size_bytes(Policy(), layers) == pytest.approx(toy_baseline.metrics["size_bytes"], rel=0.01)
    assert toy_costs.size_error.mean < 0.05


def test_what_it_tells_is_what_is_stored(toy_costs: CostTable, toy_baseline: Baseline) -> None:
    layers, again = toy_baseline.layers, CostTable.from_json(toy_costs.to_json())
    assert again == toy_costs
    for policy in spread_policies(layers, MENU, 8, seed=5):
        assert again.size_bytes(policy, layers) == toy_costs.size_bytes(policy, layers)
        assert again.latency_ms(policy, layers) == toy_costs.latency_ms(policy, layers) > 0


def test_more_channels_never_take_fewer_bytes(toy_costs: CostTable) -> None:
    for layer in toy_costs.layers:
        for how in (FLOAT, INTEGER, LayerPolicy(weight_bits=3), LayerPolicy(weight_bits=2, weight_sparsity=0.8)):
            sizes = np.array([[layer.bytes(i, o, how) for o in layer.outputs] for i in layer.inputs])
            assert (np.diff(sizes, axis=0) > 0).all()
            assert (np.diff(sizes, axis=1) > 0).all()


def test_every_layer_is_there_and_the_hardware_is_named(toy_costs: CostTable, toy_baseline: Baseline) -> None:
    assert [layer.name for layer in toy_costs.layers] == [layer.name for layer in toy_baseline.layers]
    conv = toy_costs.layer("conv1")
    assert (conv.inputs, conv.outputs) == ((8, 16), (8, 16, 24, 32))
    assert {storage.bits for storage in conv.storage} == {None, *range(2, 9)}
    assert toy_costs.environment.cpu
    assert "onnxruntime" in toy_costs.environment.versions
    assert toy_costs.size_error.policies == toy_costs.latency_error.policies == 6
    assert toy_costs.seconds > 0


def test_a_wide_layer_takes_longer_than_a_narrow_one(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    target = Target(batch_size=64)  # enough to do that the difference is no noise
    model = toy_baseline.model(toy_task)
    found = uses(model, torch.tensor(toy_data["train"][0][:2]), toy_baseline.layers, target)
    conv = next(layer for layer in layer_costs(model, found, target, Lane()) if layer.name == "conv1")
    for how in (FLOAT, INTEGER):
        assert conv.ms(16, 32, how) > 1.3 * conv.ms(8, 16, how) > 0


class Odd(nn.Module):
    """One of each: padding by name, batch norm, depthwise, a layer called twice, padding by reflection, rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, (3, 1), stride=2, padding=(1, 0), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.twice = nn.Conv2d(8, 8, 1, bias=False)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.rows = nn.Linear(4, 6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.depthwise(torch.relu(self.norm(self.first(images))))
        x = self.twice(torch.relu(self.twice(x)))
        out: Tensor = self.rows(self.reflecting(x).mean(3))
        return out.mean(1)


@pytest.fixture(scope="module")
def odd_uses() -> tuple[nn.Module, Layers, dict[str, Use]]:
    torch.manual_seed(0)
    model, example = Odd().eval(), torch.randn(2, 1, 8, 8)
    layers = probe(model, example)
    return model, layers, {use.layer.name: use for use in uses(model, example, layers, Target(batch_size=3))}


def test_layers_are_seen_as_they_are_applied(odd_uses: tuple[nn.Module, Layers, dict[str, Use]]) -> None:
    _, _, found = odd_uses
    first = LayerShape("conv2d", 1, 8, size=(8, 8), kernel=(3, 1), stride=(2, 2), padding=(1, 0, 1, 0), batch=3)
    assert found["first"].shapes == (first,)  # its bias is that of the batch norm folded into it
    assert found["first"].numbers == 8 * 4 * 4
    (depthwise,) = found["depthwise"].shapes
    assert depthwise.padding == (1, 1, 1, 1)
    assert depthwise.is_blockwise
    assert depthwise.at(1, 4).groups == depthwise.at(1, 4).inputs == 4
    assert len(found["twice"].shapes) == 2
    assert not found["twice"].shapes[0].bias
    assert found["rows"].shapes == (LayerShape("linear", 4, 6, size=(8,), batch=3),)
    assert {name for name, use in found.items() if not use.has_integer_kernel} == {"twice", "reflecting"}
    for use in found.values():
        assert (use.outputs[-1], use.inputs[-1]) == use.layer.weight_shape[:2]


def test_any_layer_can_be_timed(odd_uses: tuple[nn.Module, Layers, dict[str, Use]]) -> None:
    model, layers, found = odd_uses
    costs = layer_costs(model, tuple(found.values()), Target(batch_size=3), Lane())
    assert [layer.name for layer in costs] == [layer.name for layer in layers]
    assert {layer.name for layer in costs if not layer.int8_ms} == {"twice", "reflecting"}


def test_grids_are_thinned_to_multiples() -> None:
    model = nn.Sequential(nn.Conv2d(1, 200, 1), nn.ReLU(), nn.Conv2d(200, 4, 1), nn.AvgPool2d(2), nn.Flatten())
    example = torch.randn(2, 1, 2, 2)
    layers = probe(model, example)
    wide, _ = uses(model, example, layers, Target())
    assert wide.outputs == (8, 64, 128, 192, 200)


def test_equal_layers_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[LayerShape, Manner]] = []
    real = runtime_of(Target())
    assert real.single is not None
    forms = real.single.forms

    def noting(shape: LayerShape, manner: Manner) -> tuple[bytes, NDArray[Any]]:
        made.append((shape, manner))
        assert real.single is not None
        return real.single.file(shape, manner)

    monkeypatch.setitem(runtimes._RUNTIMES, "onnxruntime", replace(real, single=SingleLayer(noting, forms)))
    torch.manual_seed(0)
    conv = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(5)]
    model, example = nn.Sequential(nn.Conv2d(1, 8, 1), *conv, nn.AvgPool2d(4), nn.Flatten()).eval(), torch.randn(2, 1, 4, 4)
    layers = probe(model, example)
    found = uses(model, example, layers, Target())
    one, *others = layer_costs(model, found[1:5], Target(), Lane())
    assert [(other.float_ms, other.int8_ms) for other in others] == [(one.float_ms, one.int8_ms)] * 3
    square = [key for key in made if key[0] == found[1].shapes[0] and key[1] == "integer"]
    assert 1 <= len(square) <= 2, "once, or once more where the machine was slow; not for each of the four"


@pytest.mark.parametrize("slow_runs", [0, 40, 400])
def test_what_was_timed_in_a_slow_moment_is_timed_again(monkeypatch: pytest.MonkeyPatch, slow_runs: int) -> None:
    """Above all the file that does nothing, which is the first: its time is taken off all the others."""
    clock, runs = 0.0, 0
    real = runtime_of(Target())

    def load(content: bytes, target: Target) -> Callable[[Any], None]:
        def run(inputs: Any) -> None:
            nonlocal clock, runs
            runs += 1
            clock += float(content) * (3 if runs <= slow_runs else 1)

        return run

    def file(shape: LayerShape, manner: Manner) -> tuple[bytes, NDArray[Any]]:
        seconds = 1e-5 + (1e-7 * shape.inputs * shape.outputs if shape.kind == "conv2d" else 0.0)
        return str(seconds).encode(), np.zeros(1)

    assert real.single is not None
    fake = replace(real, single=SingleLayer(file, real.single.forms), load=load)  # type: ignore[arg-type]
    monkeypatch.setitem(runtimes._RUNTIMES, "onnxruntime", fake)
    monkeypatch.setattr("autocompress.profile.single.time.perf_counter", lambda: clock)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 64, 1), nn.Conv2d(64, 8, 1), nn.Flatten()).eval()
    example = torch.randn(2, 3, 4, 4)
    costs = layer_costs(model, uses(model, example, probe(model, example), Target()), Target(), Lane())
    for layer in costs:
        full = 1e-4 * layer.inputs[-1] * layer.outputs[-1]
        assert (layer.float_ms[-1][-1], layer.int8_ms[-1][-1]) == pytest.approx((full, full)), layer.name


def test_a_slow_moment_is_known_by_a_wider_layer_that_was_faster() -> None:
    true = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [9.6, 6.0, 9.0]]  # eight channels take 1.6 times as long as sixteen
    assert without_slow_moments(true) == tuple(map(tuple, true))
    disturbed = [[1.5, 2.0, 3.0], [2.0, 19.0, 6.0], [19.0, 6.0, 9.0]]
    assert np.array(without_slow_moments(disturbed)) == pytest.approx(
        np.array([[1.5, 2.0, 3.0], [2.0, 12.0, 6.0], [12.0, 6.0, 9.0]])
    )


def test_a_runtime_without_single_layers_goes_by_multiply_accumulates(
    monkeypatch: pytest.MonkeyPatch, toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    bare = replace(runtime_of(Target()), single=None)
    monkeypatch.setitem(runtimes._RUNTIMES, "onnxruntime", bare)
    table = profile(toy_task, toy_baseline, toy_data, policies=2)
    conv, macs = table.layer("conv1"), {layer.name: layer.macs for layer in toy_baseline.layers}
    assert conv.ms(16, 32, FLOAT) == pytest.approx(macs["conv1"] / 1e6)
    assert conv.ms(8, 32, FLOAT) == pytest.approx(macs["conv1"] / 2e6)
    assert table.size_bytes(Policy(), toy_baseline.layers) == pytest.approx(toy_baseline.metrics["size_bytes"], rel=0.05)
    times = [table.latency_ms(policy, toy_baseline.layers) for policy in spread_policies(toy_baseline.layers, MENU, 6, seed=1)]
    assert all(time > 0 for time in times)


# The fit, to figures that are made by a formula.


def made_points(table: CostTable, layers: Layers, count: int, *, noise: float = 0.0) -> list[Point]:
    draw = np.random.default_rng(3)
    policies = [Policy(), *spread_policies(layers, MENU, count, seed=0)]
    return [
        Point(policy, table.size_bytes(policy, layers), table.latency_ms(policy, layers) * math.exp(draw.normal(0, noise)))
        for policy in policies
    ]


def made_truth(layers: Layers) -> tuple[tuple[LayerCosts, ...], tuple[Use, ...], CostTable]:
    """Costs of single layers, and the table that is to be found: integers slower than measured alone, borders, an intercept."""
    alone = tuple(
        LayerCosts(**dict(layer) | {"codes": {"layer": 0, "channel": 8}, "integer": {"layer": 0, "channel": 8}})
        for layer in made_costs(layers, Target()).layers
    )
    found = tuple(
        Use(layer, (), True, layer.macs // math.prod(layer.weight_shape[1:]), (1,), (1,), has_integer_kernel=True)
        for layer in layers
    )
    border = {use.layer.name: 3e-6 * use.numbers for use in found}
    whole = tuple(
        LayerCosts(
            **dict(layer)
            | {
                "codes": {"layer": 90, "channel": 8},
                "integer": {"layer": 210, "channel": 8},
                "int8_ms": tuple(tuple(1.5 * ms for ms in row) for row in layer.int8_ms),
                "border_ms": border[layer.name],
            }
        )
        for layer in alone
    )
    made = dict(made_costs(layers, Target())) | {"layers": whole, "slope": 0.8, "intercept_ms": 0.07, "rest_bytes": 1234.0}
    return alone, found, CostTable(**made)


@pytest.mark.parametrize("layers", [vgg(), resnet20()], ids=["vgg", "resnet20"])
def test_the_fit_finds_what_the_figures_were_made_of(layers: Layers) -> None:
    alone, found, truth = made_truth(layers)
    fitted = fit(alone, found, made_points(truth, layers, 12), layers, MENU)
    assert fitted.intercept_ms == pytest.approx(0.07, rel=1e-3)
    assert fitted.slope == pytest.approx(0.8, rel=1e-3)
    assert fitted.rest_bytes == pytest.approx(1234, rel=1e-3)
    for layer, true in zip(fitted.layers, truth.layers, strict=True):
        assert layer.codes.layer == pytest.approx(90, rel=1e-3)
        assert layer.integer.layer == pytest.approx(210, rel=1e-3)
        assert layer.border_ms == pytest.approx(true.border_ms, rel=1e-2)
        np.testing.assert_allclose(layer.int8_ms, true.int8_ms, rtol=1e-3)
    assert fitted.latency_error.largest < 1e-3
    assert fitted.latency_error.rank_correlation == pytest.approx(1)


def test_one_disturbed_measurement_does_not_matter() -> None:
    layers = vgg()
    alone, found, truth = made_truth(layers)
    points = made_points(truth, layers, 12, noise=0.003)
    points[5] = replace(points[5], latency_ms=2 * points[5].latency_ms)
    fitted = fit(alone, found, points, layers, MENU)
    table = CostTable(
        **dict(truth)
        | {"layers": fitted.layers, "slope": fitted.slope, "intercept_ms": fitted.intercept_ms, "rest_bytes": fitted.rest_bytes}
    )
    for policy in spread_policies(layers, MENU, 10, seed=77):
        assert table.latency_ms(policy, layers) == pytest.approx(truth.latency_ms(policy, layers), rel=0.03)
    assert fitted.latency_error.largest > 0.4  # but it is told


def test_few_policies_give_one_slope() -> None:
    layers = vgg()
    alone, found, truth = made_truth(layers)
    fitted = fit(alone, found, made_points(truth, layers, 3), layers, MENU)
    assert [layer.int8_ms for layer in fitted.layers] == [layer.int8_ms for layer in alone]
    assert all(layer.border_ms == 0 for layer in fitted.layers)
    assert fitted.slope > 0


def test_times_that_are_all_alike_give_a_table_all_the_same() -> None:
    layers = vgg()
    alone, found, truth = made_truth(layers)
    points = [replace(point, latency_ms=0.1) for point in made_points(truth, layers, 8)]
    fitted = fit(alone, found, points, layers, MENU)
    assert fitted.slope > 0
    assert fitted.latency_error.rank_correlation == 0
    nothing = tuple(
        LayerCosts(
            **dict(layer) | {what: tuple((0.0,) * len(layer.outputs) for _ in layer.inputs) for what in ("float_ms", "int8_ms")}
        )
        for layer in alone
    )
    assert fit(nothing, found, points, layers, MENU).intercept_ms == pytest.approx(0.1)


# The policies it is fitted to.


def test_policies_are_spread_over_all_there_is() -> None:
    layers = resnet20()
    policies = spread_policies(layers, MENU, 20, seed=0)
    assert len({policy.key() for policy in policies}) == 20
    assert policies == spread_policies(layers, MENU, 20, seed=0)
    assert policies != spread_policies(layers, MENU, 20, seed=1)
    for policy in policies:
        policy.check(layers, MENU)
        assert policy.finetune.steps == 0
        assert not policy.repair
    kept = [np.mean([outputs for _, outputs in policy.widths(layers, MENU).values()]) for policy in policies]
    assert min(kept) < 0.5 * max(kept)
    integers = [sum(how.activation_bits is not None for how in policy.layers.values()) for policy in policies]
    left = [len(policy.widths(layers, MENU)) for policy in policies]
    assert {0, 1, None} == {None if not count else of - count for count, of in zip(integers, left, strict=True)}
    assert min(left) < len(layers) - 4 < max(left) == len(layers)
    assert {policy.layers.get(layer.name, FLOAT).weight_bits for policy in policies for layer in layers} >= {None, 2, 8}


@pytest.mark.parametrize(
    "menu",
    [
        Menu(weight_bits=(8, None), activation_bits=(None,), weight_sparsity=False, channel_multiple=4),
        Menu(weight_bits=(8,), activation_bits=(8,), weight_sparsity=False, channel_multiple=8),
        Menu(weight_bits=(None,), activation_bits=(None,), weight_sparsity=True, channel_multiple=1),
    ],
)
def test_policies_keep_to_the_menu(menu: Menu) -> None:
    for policy in spread_policies(vgg(), menu, 8, seed=0):
        policy.check(vgg(), menu)


def test_too_few_policies(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    with pytest.raises(InputError, match="fitted to at least 2 whole policies, given 1"):
        profile(toy_task, toy_baseline, toy_data, policies=1)


# Files that come from elsewhere.


def written(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    table = json.loads(made_costs(vgg(), Target()).to_json())
    change(table)
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(table))
    return file


def test_a_file_from_elsewhere_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, lambda table: table["environment"].update(cpu="another machine"))
    assert load_costs(file, Target(), vgg()).environment.cpu == "another machine"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table["target"].update(batch_size=32), r"is a cost table for onnxruntime-cpu:batch32; the experiment"),
        (lambda table: table["layers"].pop(1), "of another network: it lacks the layer 'conv2'"),
        (
            lambda table: table["layers"][0].update(outputs=[8, 16, 24, 32]),
            "its layer 'conv1' has 1 input and 32 output channels, the experiment's has 1 input and 64 output channels",
        ),
        (lambda table: table.pop("slope"), "costs.json is no valid CostTable: slope: Field required"),
        (lambda table: table.update(version=2), "costs.json is no valid CostTable: version"),
        (lambda table: table["layers"][2].update(float_ms=[]), "layers.2: Value error, float_ms must have 4 rows of 4 times"),
    ],
)
def test_a_file_that_does_not_suit_is_one_clear_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as refused:
        load_costs(written(tmp_path, change), Target(), vgg())
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text("{")
    with pytest.raises(InputError, match="no valid CostTable"):
        load_costs(tmp_path / "costs.json", Target(), vgg())
    with pytest.raises(InputError, match=r"cannot read the cost table .*none.json: No such file"):
        load_costs(tmp_path / "none.json", Target(), vgg())


def test_profile_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_baseline: Baseline) -> None:
    experiment, output = write_experiment(tmp_path), tmp_path / "table.json"
    assert call("profile", experiment, "--driver", "local", "--policies", "2", "-o", output) == 0
    shown = capsys.readouterr().out
    for part in ("conv1", "16, 32", "8, 16", "4 bits", "error of predicted times", "rank correlation", "threads", str(output)):
        assert part in shown.replace("thread(s)", "threads")
    table = load_costs(output, Target(), toy_baseline.layers)
    assert table.size_error.policies == 2
    assert f"{table.environment.cores} cores" in shown


def test_bad_input_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("profile", write_experiment(tmp_path), "--policies", "1") == 2
    assert "1 is not in the range x>=2" in capsys.readouterr().err
    assert call("profile", tmp_path / "none.py", "--driver", "local") == 2
    assert "no experiment file" in capsys.readouterr().err
