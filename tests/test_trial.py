"""A trial from policy to measured file, and every way it can end."""

import gc
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autocompress import runtimes
from autocompress.baseline import Baseline, Data, check_parity, load_baseline, load_data, make_baseline, move_baseline
from autocompress.distill import Teacher, hint_loss
from autocompress.errors import ExportError, PolicyError, RunFolderError, TaskError, UnknownNameError
from autocompress.lane import Lane
from autocompress.measure import Here, Latency, score
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.result import Rung, Status, TrialResult
from autocompress.runtimes import runtime_of
from autocompress.target import Target
from autocompress.task import Task
from autocompress.testing import FailingTask, NanTask, ToyNet, ToyTask
from autocompress.trial import _first_score, run_trial
from autocompress.trial_files import CHECKPOINT

NAMES = ("stem", "conv1", "conv2", "head")
POLICY = Policy(
    channel_sparsity={"conv1": 0.5},
    layers=dict.fromkeys(NAMES, LayerPolicy(weight_bits=4, activation_bits=8)),
    finetune=Finetune(steps=16, learning_rate=1e-3, batch_size=32),
    distill=Distill(),
)


@pytest.fixture
def run(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> Any:
    def go(policy: Policy = POLICY, task: Task = toy_task, progress: Any = lambda _: True, **options: Any) -> TrialResult:
        defaults: dict[str, Any] = {
            "baseline": toy_baseline,
            "data": toy_data,
            "number": 7,
            "seed": 3,
            "folder": tmp_path / "trial",
        }
        return run_trial(policy, task, Target(), progress, **(defaults | options))

    return go


def test_everything_is_measured_on_the_exported_file(run: Any, toy_data: Data, toy_baseline: Baseline, tmp_path: Path) -> None:
    result = run()
    assert result.status is Status.COMPLETE
    file = tmp_path / "trial" / "model.onnx"
    assert result.metrics["size_bytes"] == file.stat().st_size
    assert result.metrics["download_bytes"] < file.stat().st_size + 200
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs, targets = toy_data["validation"]
    assert result.metrics["accuracy"] == (session.run(None, {"input": inputs})[0].argmax(1) == targets).mean()
    assert result.metrics["latency_ms"] == result.metrics["latency_ratio"] * toy_baseline.metrics["latency_ms"]
    assert result.metrics["macs"] < toy_baseline.metrics["macs"]
    assert result.metrics["params"] < toy_baseline.metrics["params"]
    assert Policy.from_json((tmp_path / "trial" / "policy.json").read_text()) == POLICY
    assert [rung.step for rung in result.rungs] == [0, 8, 16]
    assert result.model == "trials/0007/model.onnx"
    assert set(result.seconds) == {"compress", "finetune", "evaluate", "export", "measure"}
    assert [rung.seconds for rung in result.rungs] == sorted({rung.seconds for rung in result.rungs})
    assert result.rungs[-1].seconds < result.compute == pytest.approx(sum(result.seconds.values()))
    assert TrialResult.from_json(result.to_json()) == result


class Watching(ToyTask):
    """Notes how many examples the largest tensor of pictures has, and writes into its batches."""

    most = 0

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        pictures = [part for part in gc.get_objects() if type(part) is Tensor and part.shape[1:] == inputs.shape[1:]]
        self.most = max(self.most, *map(len, pictures))
        return inputs.mul_(0.5)


@pytest.mark.parametrize("distill", [None, Distill(hint_share=0.1)])
def test_a_trial_reads_the_train_split_and_has_no_copy_of_it(run: Any, toy_data: Data, distill: Distill | None) -> None:
    """The trials of a machine share its arrays, which are read-only there."""
    inputs, targets = (np.repeat(part, 3, axis=0) for part in toy_data["train"])
    before = inputs.copy()
    inputs.flags.writeable = targets.flags.writeable = False
    task, policy = Watching(), POLICY.model_copy(update={"distill": distill, "importance": "taylor"})
    result = run(policy, task, data={**toy_data, "train": (inputs, targets)})
    assert (result.status, result.error) == (Status.COMPLETE, None)
    assert 0 < task.most < len(inputs)
    assert np.array_equal(inputs, before)


def test_the_same_seed_gives_the_same_model(run: Any, tmp_path: Path) -> None:
    files = []
    for place, seed in enumerate((5, 5, 6)):
        run(seed=seed, folder=tmp_path / str(place))
        files.append((tmp_path / str(place) / "model.onnx").read_bytes())
    assert files[0] == files[1] != files[2]


def test_what_was_drawn_before_does_not_matter(run: Any, tmp_path: Path) -> None:
    class Dropping(ToyTask):
        def model(self) -> torch.nn.Module:
            network = super().model()
            torch.randn(7)  # a worker calls this for its first trial alone
            network.register_module("pool", torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Dropout(0.5)))
            return network

        def score(self, outputs: Any, targets: Any) -> float:
            torch.rand(1)
            return super().score(outputs, targets)

    baseline, students = make_baseline(Dropping(epochs=1), Target(), tmp_path / "baseline", seed=0), []
    ways: tuple[dict[str, Any], ...] = ({}, {}, {"screened": True})  # only the first makes the teacher
    for place, options in enumerate(ways):
        result = run(task=Dropping(), baseline=baseline, folder=tmp_path / str(place), **options)
        assert max(rung.accuracy for rung in result.rungs[1:]) > result.rungs[0].accuracy  # not the student before training
        students.append((tmp_path / str(place) / CHECKPOINT).read_bytes())
    assert students[0] == students[1] == students[2]


def test_the_best_rung_is_kept_not_the_last(run: Any) -> None:
    ruinous = POLICY.model_copy(update={"finetune": Finetune(steps=16, learning_rate=30.0, batch_size=32), "distill": None})
    result = run(ruinous)
    scores = [rung.accuracy for rung in result.rungs]
    assert result.status is Status.COMPLETE
    assert scores[-1] < max(scores) - 0.1  # training did ruin it
    assert result.metrics["accuracy"] > max(scores) - 0.03


def test_progress_may_stop_it(run: Any, tmp_path: Path) -> None:
    seen: list[Rung] = []

    def until_second(rung: Rung) -> bool:
        seen.append(rung)
        return len(seen) < 2

    result = run(progress=until_second)
    assert (result.status, result.metrics, len(result.rungs)) == (Status.STOPPED, {}, 2)
    assert not (tmp_path / "trial" / "model.onnx").exists()


def test_what_is_stopped_still_says_what_it_cost(run: Any) -> None:
    result = run(progress=lambda rung: rung.step < 8, rungs=(0.0, 0.5))
    assert result.status is Status.STOPPED
    assert result.compute == result.rungs[-1].seconds > 0
    assert result.environment is not None


def test_a_screened_trial_knows_its_size_and_latency_before_it_trains(run: Any, tmp_path: Path) -> None:
    result = run(screened=True)
    first = result.rungs[0].metrics
    assert first["latency_ms"] > 0
    assert first["macs"] == result.metrics["macs"]
    # Only zeros that training makes or fills can change the file's size.
    assert first["size_bytes"] == pytest.approx(result.metrics["size_bytes"], rel=0.03)
    assert "accuracy" not in first
    assert all(rung.metrics == first for rung in result.rungs)


def test_a_student_that_is_not_trained_is_exported_and_scored_once(run: Any, toy_data: Data, tmp_path: Path) -> None:
    untrained = POLICY.model_copy(update={"finetune": Finetune(steps=0), "distill": None})
    screened, plain = (run(untrained, screened=how, folder=tmp_path / str(how)) for how in (True, False))
    files = [(tmp_path / str(how) / "model.onnx").read_bytes() for how in (True, False)]
    assert files[0] == files[1]
    for result in (screened, plain):
        assert [rung.step for rung in result.rungs] == [0]
        assert result.metrics["accuracy"] == score(files[0], toy_data["validation"], ToyTask(), Here(Target()))
    assert screened.rungs[0].accuracy == screened.metrics["accuracy"]
    assert screened.rungs[0].metrics.items() <= screened.metrics.items()
    assert (tmp_path / "True" / CHECKPOINT).exists()


def test_a_screened_trial_that_training_ruins_ends_with_its_first_file(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = counted(monkeypatch)
    ruinous = POLICY.model_copy(update={"finetune": Finetune(steps=16, learning_rate=30.0, batch_size=32), "distill": None})
    result = run(ruinous, screened=True)
    untrained = run(ruinous.model_copy(update={"finetune": Finetune(steps=0)}), screened=True, folder=tmp_path / "untrained")
    assert exports == [1, 1]
    assert len(result.rungs) > 1
    assert result.metrics["accuracy"] == result.rungs[0].accuracy == untrained.metrics["accuracy"]
    for name in ("model.onnx", CHECKPOINT):
        assert (tmp_path / "trial" / name).read_bytes() == (tmp_path / "untrained" / name).read_bytes()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Appends 1 for each export."""
    exports: list[int] = []
    real = runtime_of(Target())

    def export(model: nn.Module, example: torch.Tensor) -> bytes:
        exports.append(1)
        return real.export(model, example)

    monkeypatch.setitem(runtimes._RUNTIMES, "onnxruntime", replace(real, export=export))
    return exports


def test_a_file_of_another_network_is_found_out_before_it_is_trained(
    toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data
) -> None:
    same = toy_baseline.model(toy_task)
    teacher = Teacher(same, toy_baseline.layers.ends[1])
    torch.manual_seed(1)
    other, flat, broken = ToyNet().eval(), deepcopy(same), deepcopy(same)

    def first_score(student: nn.Module, file: bytes = toy_baseline.file) -> float:
        return _first_score(file, student, teacher, toy_task, Here(Target()), toy_data, Lane())

    assert first_score(same) == toy_baseline.metrics["accuracy"]
    with torch.no_grad():
        broken.get_parameter("head.bias")[0] = torch.nan
        for name in ("head.weight", "head.bias"):
            flat.get_parameter(name).mul_(1e-6)
    for student in (other, broken):
        with pytest.raises(ExportError, match="differ by"):
            first_score(student)
    # All outputs are nearly the same: what rounding does to them is no sign of another network.
    off = deepcopy(flat)
    with torch.no_grad():
        off.get_parameter("head.bias").add_(1e-6)
    first_score(off, runtime_of(Target()).export(flat, torch.tensor(toy_data["train"][0][:4])))


def test_a_refit_goes_on_where_the_trial_ended(run: Any, tmp_path: Path) -> None:
    first = run()
    checkpoint = (tmp_path / "trial" / CHECKPOINT).read_bytes()
    longer = POLICY.model_copy(update={"finetune": POLICY.finetune.model_copy(update={"steps": 24})})
    result = run(longer, checkpoint=checkpoint, refit_of=7, number=9, folder=tmp_path / "refit")
    assert result.status is Status.COMPLETE
    assert result.refit_of == 7
    assert result.rungs[0].accuracy == max(rung.accuracy for rung in first.rungs)
    assert result.rungs[-1].step == 24
    assert result.metrics["macs"] == first.metrics["macs"]


def test_a_checkpoint_of_another_policy_fails_the_trial(run: Any, tmp_path: Path) -> None:
    run()
    checkpoint = (tmp_path / "trial" / CHECKPOINT).read_bytes()
    wider = POLICY.model_copy(update={"channel_sparsity": {}})
    for given in (checkpoint, b"no checkpoint"):
        result = run(wider, checkpoint=given, folder=tmp_path / "other")
        assert result.status is Status.FAILED
        assert result.error.startswith("the checkpoint does not fit the policy")


def test_a_loss_that_is_not_finite_ends_the_trial(run: Any) -> None:
    result = run(task=NanTask())
    assert (result.status, result.metrics) == (Status.FAILED, {})
    assert result.error == "the loss is nan at step 1 of 16"


def test_a_users_mistake_fails_the_trial_and_names_itself(run: Any) -> None:
    result = run(task=FailingTask("loss"))
    assert result.status is Status.FAILED
    assert result.error == "RuntimeError: a mistake in loss"


def test_a_policy_that_does_not_fit_is_refused(run: Any, toy_baseline: Baseline) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'conv1'"):
        run(Policy(layers={"conv_1": LayerPolicy(weight_bits=4)}))
    with pytest.raises(UnknownNameError, match="no channel group 'conv2'"):
        run(Policy(channel_sparsity={"conv2": 0.5}))
    menu = Target().menu.model_copy(update={"weight_bits": (8, None)})
    with pytest.raises(PolicyError, match=r"layer 'stem': weight_bits 4 is not on the target's menu \(8, float\)"):
        POLICY.check(toy_baseline.layers, menu)


def test_files_run_at_the_places_that_are_given(run: Any, toy_baseline: Baseline) -> None:
    timed: list[bytes] = []

    class Elsewhere(Here):
        def time(self, model: bytes, baseline: bytes) -> Latency:
            assert baseline == toy_baseline.file
            timed.append(model)
            return Latency(latency_ms=1.0, baseline_latency_ms=4.0)

    result = run(places={Target().name: Elsewhere(Target())})
    assert len(timed[0]) == result.metrics["size_bytes"]
    assert result.metrics["latency_ratio"] == 0.25
    assert result.metrics["latency_ms"] == 0.25 * toy_baseline.metrics["latency_ms"]


def test_the_baseline_is_trained_once(toy_task: ToyTask, tmp_path: Path) -> None:
    first = make_baseline(toy_task, Target(), tmp_path, seed=0)

    class Untrainable(ToyTask):
        def train(self, model: Any, inputs: Any, targets: Any) -> None:
            raise AssertionError("trained again")

    again = make_baseline(Untrainable(), Target(), tmp_path, seed=0)
    assert again.file == first.file
    assert again.metrics == first.metrics
    assert again.layers == first.layers
    assert all(np.array_equal(again.weights[name], value) for name, value in first.weights.items())


def test_a_baseline_moves_to_another_target_without_training(toy_baseline: Baseline, tmp_path: Path) -> None:
    class Untrainable(ToyTask):
        def train(self, model: Any, inputs: Any, targets: Any) -> None:
            raise AssertionError("trained again")

    target = Target(runtime="torch")
    moved = move_baseline(toy_baseline, Untrainable(), target, tmp_path)
    assert moved.files.keys() == {"torch"}
    assert moved.metrics["accuracy"] == pytest.approx(toy_baseline.metrics["accuracy"], abs=0.01)
    assert make_baseline(Untrainable(), target, tmp_path, seed=0).metrics == moved.metrics
    assert all(np.array_equal(moved.weights[name], value) for name, value in toy_baseline.weights.items())

    class Other(ToyTask):
        def model(self) -> nn.Module:
            return nn.Linear(4, 3)

    with pytest.raises(TaskError, match="does not fit the stored baseline"):
        move_baseline(toy_baseline, Other(), target, tmp_path)


def test_a_damaged_baseline_is_said(toy_baseline: Baseline, toy_task: ToyTask, tmp_path: Path) -> None:
    make_baseline(toy_task, Target(), tmp_path, seed=0)
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(RunFolderError, match="is damaged"):
        load_baseline(tmp_path)


@pytest.mark.parametrize("where", ["model", "data", "score"])
def test_a_task_that_does_not_work_is_named(where: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=f"{where}.*RuntimeError: a mistake in {where}"):
        make_baseline(FailingTask(where), Target(), tmp_path, seed=0)


def test_a_score_out_of_range(tmp_path: Path) -> None:
    class Percent(ToyTask):
        def score(self, outputs: Any, targets: Any) -> float:
            return 100 * super().score(outputs, targets)

    with pytest.raises(TaskError, match=r"outside the task's score_range \(0 to 1\)"):
        make_baseline(Percent(epochs=1), Target(), tmp_path, seed=0)


def test_distillation_pulls_towards_the_teacher(run: Any) -> None:
    teacher, student = torch.randn(8, 4), torch.randn(8, 4)
    loss = partial(ToyTask().distillation, temperature=4.0)
    assert loss(teacher, teacher).abs() < 1e-6 < loss(student, teacher)
    assert hint_loss(teacher, teacher) == 0 < hint_loss(student, teacher)
    assert torch.allclose(hint_loss(teacher * 3, teacher), torch.zeros(()), atol=1e-6)  # only likeness counts
    taught = run(POLICY.model_copy(update={"distill": Distill(share=0.5, hint_share=0.5)}))
    plain = run(POLICY.model_copy(update={"distill": None}))
    assert taught.status is plain.status is Status.COMPLETE
    assert [rung.accuracy for rung in taught.rungs] != [rung.accuracy for rung in plain.rungs]


def test_data_is_checked(tmp_path: Path) -> None:
    class Uneven(ToyTask):
        def data(self, split: Any) -> Any:
            inputs, targets = super().data(split)
            return inputs, targets[:-1]

    with pytest.raises(TaskError, match="as many inputs as targets"):
        load_data(Uneven())


def test_a_network_that_needs_the_usual_layout_is_compressed_too(run: Any, toy_task: ToyTask, tmp_path: Path) -> None:
    class Viewing(ToyTask):
        def model(self) -> torch.nn.Module:
            network = super().model()
            network.register_module("pool", torch.nn.Sequential(torch.nn.MaxPool2d(2), _View()))
            return network

    baseline = make_baseline(Viewing(), Target(), tmp_path / "viewing", seed=0)
    result = run(task=Viewing(), baseline=baseline)
    assert result.status is Status.COMPLETE, result.error


def test_a_task_may_give_the_same_network_each_time(tmp_path: Path) -> None:
    network = ToyNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    class Same(ToyTask):
        def model(self) -> torch.nn.Module:
            return network

    task = Same(epochs=1)
    first, second = (make_baseline(task, Target(), tmp_path / name, seed=0) for name in "ab")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(np.array_equal(array, second.weights[name]) for name, array in first.weights.items())
    models = first.model(task), second.model(task)
    assert len({id(model.get_submodule("bn1")) for model in (network, *models)}) == 3


def test_a_network_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    class Fixed(ToyTask):
        def model(self) -> torch.nn.Module:
            network = super().model()
            network.register_module("pool", torch.nn.Sequential(torch.nn.MaxPool2d(2), _Length()))
            return network

    with pytest.raises(TaskError, match=r"as len\(x\) does; write x.shape\[0\]"):
        make_baseline(Fixed(), Target(), tmp_path, seed=0)


class _Length(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), -1)


class _View(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], -1)


def test_a_baseline_measured_for_another_target_is_refused(toy_task: ToyTask, tmp_path: Path) -> None:
    make_baseline(toy_task, Target(), tmp_path, seed=0)
    with pytest.raises(RunFolderError, match="start a new run"):
        make_baseline(toy_task, Target(batch_size=8), tmp_path, seed=0)


def test_a_file_that_is_not_the_model_is_no_baseline(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    model, example = toy_baseline.model(toy_task), torch.tensor(toy_data["train"][0][:8])
    assert check_parity(model, toy_baseline.file, example, Here(Target())) < 1e-4
    with torch.no_grad():
        model.get_parameter("head.bias").add_(1.0)
    with pytest.raises(TaskError, match="the exported file differs from the model"):
        check_parity(model, toy_baseline.file, example, Here(Target()))
