"""Targets by name, several at once, and what all of them have on their menus."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import InputError, UnknownNameError
from autocompress.experiment import Experiment, check_metrics, load_experiment
from autocompress.objective import Limit, Objective
from autocompress.opened import Options
from autocompress.target import MENUS, Menu, Target
from autocompress.testing import ToyTask
from tests.toy import write_experiment


@given(
    place=st.sampled_from(
        [("onnxruntime", "tensorrt"), ("onnxruntime", "cpu"), ("openvino", "cpu"), ("torch-compiled", "cuda")]
    ),
    batch_size=st.integers(1, 500),
    threads=st.integers(1, 64),
)
def test_a_name_is_read_back(place: tuple[str, str], batch_size: int, threads: int) -> None:
    runtime, device = place
    target = Target.model_validate({"runtime": runtime, "device": device, "batch_size": batch_size, "threads": threads})
    assert Target.parse(target.name) == target


def test_names_are_short_where_settings_are_the_usual_ones() -> None:
    assert Target().name == "onnxruntime-cpu"
    assert Target(runtime="openvino", threads=2, batch_size=16).name == "openvino-cpu:2threads:batch16"
    assert Target.parse("torch-compiled") == Target(runtime="torch-compiled")
    assert Target.parse("onnxruntime-cpu:1thread") == Target()


@pytest.mark.parametrize("name", ["onnxruntime-cpu:fast", "onnxruntime-cpu:0threads", "onnxruntime-cpu:", "onnxruntime:batch"])
def test_what_cannot_be_read_is_refused_with_the_form(name: str) -> None:
    with pytest.raises(InputError, match="write it like 'onnxruntime-cpu' or 'openvino-cpu:2threads:batch16'"):
        Target.parse(name)


def test_a_runtime_that_nobody_has_written_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no runtime 'openvin'; did you mean 'openvino'"):
        Target.parse("onnxruntime", "openvin-cpu")
    with pytest.raises(UnknownNameError, match="no runtime 'tensorrt'"):
        Target.parse("tensorrt")


def test_a_device_that_the_runtime_does_not_know_is_refused_with_those_it_does() -> None:
    with pytest.raises(InputError, match="there is no target openvino-cuda; of openvino there is openvino-cpu"):
        Target.parse("openvino-cuda")
    with pytest.raises(InputError, match="no target torch-tensorrt; of torch there is torch-cpu and torch-cuda"):
        Target.parse("torch-tensorrt")


def test_on_a_gpu_activations_are_floats_for_there_is_no_kernel_for_others() -> None:
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
        menu = Target.parse(name).menu
        assert (menu.activation_bits, menu.integer_kinds) == ((None,), ())
        assert menu.weight_bits == Target().menu.weight_bits


def test_the_same_twice_is_refused() -> None:
    with pytest.raises(InputError, match="the target onnxruntime-cpu is given twice"):
        Target.parse("onnxruntime", "onnxruntime-cpu")
    with pytest.raises(ValidationError, match="list them all in one"):
        Target(also=(Target(runtime="openvino", also=(Target(runtime="torch"),)),))


def test_several_have_metrics_of_their_own() -> None:
    target = Target.parse("onnxruntime", "openvino:2threads")
    first, second = target.each
    assert target.alone == first == Target()
    assert target.metric("latency_ms", first) == "latency_ms"
    assert target.metric("latency_ms", second) == "latency_ms/openvino-cpu:2threads"
    assert Target.from_json(target.to_json()) == target


def test_the_menu_is_what_all_have() -> None:
    assert Target.parse("onnxruntime", "openvino").menu == MENUS["openvino"]
    assert Target.parse("torch", "onnxruntime").menu.activation_bits == (None,)
    assert Target.parse("onnxruntime", "torch").menu.integer_kinds == ()


def test_menus_with_nothing_in_common_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = Menu(weight_bits=(1 + 1,), activation_bits=(8,), weight_sparsity=False, channel_multiple=3)
    fine = Menu(weight_bits=(8,), activation_bits=(8,), weight_sparsity=True, channel_multiple=2, integer_weight_bits=4)
    monkeypatch.setitem(MENUS, "coarse", coarse)
    monkeypatch.setitem(MENUS, "fine", fine)
    with pytest.raises(InputError, match="no policy suits all of coarse-cpu, fine-cpu"):
        _ = Target.parse("coarse", "fine").menu
    monkeypatch.setitem(MENUS, "coarse", coarse.model_copy(update={"weight_bits": (2, 8)}))
    common = Target.parse("coarse", "fine").menu
    assert (common.weight_bits, common.weight_sparsity) == ((8,), False)
    assert (common.channel_multiple, common.integer_weight_bits) == (6, 4)


def _experiment(**settings: object) -> Experiment:
    return Experiment(task=ToyTask(), space=lambda *_: None, **settings)  # type: ignore[arg-type]


def test_the_latency_at_each_target_is_an_objective() -> None:
    target = Target.parse("onnxruntime", "openvino")
    names = [objective.metric for objective in _experiment(target=target).parsed_objectives]
    assert names == ["size_bytes", "latency_ms", "latency_ms/openvino-cpu", "accuracy"]
    some = _experiment(target=target, objectives=("latency/openvino-cpu", "accuracy")).parsed_objectives
    assert [objective.metric for objective in some] == ["latency_ms/openvino-cpu", "accuracy"]
    assert [objective.goal for objective in some] == ["min", "max"]
    assert len(_experiment(objectives=("latency", "size")).parsed_objectives) == 2


def test_limits_hold_at_the_target_they_name() -> None:
    limit = Limit.parse("latency/openvino-cpu:2threads <= 0.5 * baseline")
    assert limit.metric == "latency_ms/openvino-cpu:2threads"
    base = {"latency_ms": 9.0, limit.metric: 2.0}
    assert limit.bound(base) == 1.0
    assert Limit.parse("latency/torch-cpu <= 300 us").bound({}) == pytest.approx(0.3)
    assert Limit.parse("size/torch-cpu <= 1 kB").metric == "size_bytes/torch-cpu"


def test_metrics_at_targets_that_are_not_searched_for_are_refused() -> None:
    limits = ("latency/openvino-cpu <= 1 ms",)
    with pytest.raises(InputError, match="latency_ms/openvino-cpu: the search is for onnxruntime-cpu alone"):
        check_metrics(_experiment(limits=limits))
    with pytest.raises(UnknownNameError, match="no further target 'openvino-cpu'; did you mean 'openvino-cpu:2threads'"):
        check_metrics(_experiment(limits=limits, target=Target.parse("onnxruntime", "openvino:2threads")))
    own = Objective(metric="recall/top5", goal="max")
    check_metrics(_experiment(objectives=(own, "size")))


def test_a_file_may_limit_the_time_at_a_target_that_is_named_on_the_command_line(tmp_path: Path) -> None:
    loaded = load_experiment(write_experiment(tmp_path, limits=("latency/openvino-cpu <= 1 ms",)))
    there = Options(targets=("onnxruntime", "openvino")).apply(loaded)
    assert [limit.metric for limit in there.parsed_limits] == ["latency_ms/openvino-cpu"]
    with pytest.raises(InputError, match="the search is for onnxruntime-cpu alone"):
        Options().apply(loaded)
