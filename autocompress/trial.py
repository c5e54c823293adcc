"""One trial: compress, fine-tune, export, measure. Knows neither Ray nor Optuna nor MLflow."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import nn

from autocompress import gpu, nested
from autocompress.artifacts import trial_folder
from autocompress.baseline import Baseline, Data, Pairs
from autocompress.batches import examples_of
from autocompress.compress import compress
from autocompress.distill import Teacher
from autocompress.errors import ExportError, InputError, RunFolderError, TrialError
from autocompress.fast import in_fast_layout
from autocompress.finetune import evaluate, finetune, student_outputs
from autocompress.folder import write_whole
from autocompress.lane import Lane
from autocompress.measure import Place, Places, checked_score, download_bytes, here, score, size_bytes
from autocompress.nested import Nested
from autocompress.objective import SCORE
from autocompress.policy import Policy
from autocompress.probe import cost
from autocompress.result import Rung, Status, TrialResult
from autocompress.runtimes import file_name, runtime_of
from autocompress.runtimes.machine import environment
from autocompress.target import Target
from autocompress.task import Array, Task
from autocompress.trial_files import CHECKPOINT, sums_of

Progress = Callable[[Rung], bool]

# Where a trial is judged, as shares of its fine-tuning steps.
RUNGS = (0.0, 0.5, 1.0)

# Training inputs that set batch-norm statistics and activation ranges, and that rank channels by "taylor".
_CALIBRATION = 512
_GRADIENT_BATCH = 128
_EXAMPLES = 8
# Integer kernels round a little differently from torch. A file that scores worse than that is another model.
_SCORE_GAP = 0.05
# Outputs differ by a few per cent, by 15 % where integer kernels overflow.
_OUTPUT_GAP, _COMPARED, _TINY = 0.5, 128, 1e-12


def run_trial(
    policy: Policy,
    task: Task,
    target: Target,
    progress: Progress,
    *,
    baseline: Baseline,
    data: Data,
    number: int,
    seed: int,
    folder: Path,
    places: Places | None = None,
    rungs: Sequence[float] = RUNGS,
    screened: bool = False,
    checkpoint: bytes | None = None,
    refit_of: int | None = None,
    device: torch.device = gpu.CPU,
) -> TrialResult:
    """Carries out `policy` and measures what comes out; see `trial_rungs` for the parameters.

    `progress` hears of every rung; when it answers False the trial ends there as STOPPED. `refit_of` is noted in the
    result.
    """
    started = time.time()
    trial = trial_rungs(
        policy,
        task,
        target,
        baseline=baseline,
        data=data,
        number=number,
        seed=seed,
        folder=folder,
        places=places,
        rungs=rungs,
        screened=screened,
        checkpoint=checkpoint,
        device=device,
    )
    reached: list[Rung] = []
    while True:
        try:
            rung = next(trial)
        except StopIteration as end:
            result: TrialResult = end.value
            return result.model_copy(update={"refit_of": refit_of})
        reached.append(rung)
        if not progress(rung):
            trial.close()
            return TrialResult(
                number=number,
                policy=policy,
                status=Status.STOPPED,
                rungs=tuple(reached),
                seed=seed,
                started=started,
                environment=environment(),
                summary=policy.describe(baseline.layers),
                refit_of=refit_of,
            )


def trial_rungs(
    policy: Policy,
    task: Task,
    target: Target,
    *,
    baseline: Baseline,
    data: Data,
    number: int,
    seed: int,
    folder: Path,
    places: Places | None = None,
    rungs: Sequence[float] = RUNGS,
    screened: bool = False,
    checkpoint: bytes | None = None,
    device: torch.device = gpu.CPU,
) -> Generator[Rung, None, TrialResult]:
    """A trial that pauses at every rung: yields it, and returns the result.

    `data` holds the train and validation splits, `folder` is where the files, the checkpoint and ``policy.json`` go.
    `places` says where exported files run; by default in this process, and they are timed while nothing else on this
    machine trains.
    `rungs` are shares of the fine-tuning steps. With `screened` the file is exported, measured and scored at the first rung
    already, for who stops bad trials there; it stays the one when no training makes a better one of it. `checkpoint` is that
    of another trial of a policy that differs in fine-tuning only: training goes on from there. `device` is where the student
    is compressed and trained. What goes wrong in the trial
    makes it FAILED; what raises (`InputError`) is a policy that does not fit the network or the target, and a folder that
    cannot be written.
    """
    policy.check(baseline.layers, target.menu)
    places = here(target) if places is None else places
    first = places[target.alone.name]
    clock = _Clock()
    reached: list[Rung] = []
    metrics: dict[str, float] = {}
    sums: dict[str, str] = {}
    status, error, out_of_memory = Status.COMPLETE, None, False
    try:
        gpu.begin_count(device)
        lane = Lane()
        train = data["train"]
        examples = examples_of(train[0], slice(_EXAMPLES), gpu.CPU)
        teacher = _teacher(baseline, task, device)
        torch.manual_seed(seed)  # after the teacher: who makes it, in the first trial of a worker, calls task.model()

        def judge(model: nn.Module) -> float:
            with clock.stage("evaluate"):
                return evaluate(model, task, data["validation"], lane=lane)

        def exported(model: nn.Module) -> dict[str, bytes]:
            with clock.stage("export"), lane.shared():
                plain = _for_export(model)
                return {runtime: runtime_of(at).export(plain, examples) for runtime, at in target.by_runtime.items()}

        def measured(files: dict[str, bytes], model: nn.Module) -> dict[str, float]:
            with clock.stage("measure"):
                return _measure(files, model, target, baseline, examples, places)

        def compared(files: dict[str, bytes], model: nn.Module) -> None:
            with clock.stage("evaluate"):
                _compare_further(files, model, teacher, target, data, places, lane)

        with clock.stage("compress"), lane.shared():
            student = _compressed(teacher.model, policy, task, train, baseline, seed=seed, checkpoint=checkpoint, device=device)
            student = in_fast_layout(student, examples_of(train[0], slice(_EXAMPLES), device))
        files, early, untrained = {}, {}, None
        if screened:
            files = exported(student)
            compared(files, student)
            early = measured(files, student)
            with clock.stage("evaluate"):
                untrained = _first_score(files[target.runtime], student, teacher, task, first, data, lane)
        for rung in clock.each(
            "finetune",
            finetune(student, policy, task, teacher, train, judge, rungs=rungs, seed=seed, lane=lane, untrained=untrained),
        ):
            reached.append(rung.model_copy(update={"metrics": early, "seconds": clock.total}))
            yield reached[-1]
        best = max(reached, key=lambda rung: (task.scoring.gain(rung.accuracy, 0.0), rung.step))
        if untrained is not None and best.step == 0:
            metrics = {**early, SCORE: untrained}
        else:
            files = exported(student)
            compared(files, student)
            with clock.stage("evaluate"):
                accuracy = _score(files[target.runtime], task, first, data, expected=best.accuracy)
            metrics = {**measured(files, student), SCORE: accuracy}
        kept: dict[str, bytes | str] = {CHECKPOINT: _checkpoint(student), "policy.json": policy.to_json(indent=1)}
        kept |= {file_name(target, place): files[runtime] for runtime, place in target.by_runtime.items()}
        _keep(folder, kept)
        sums = sums_of(kept)
    except InputError:  # nothing that another policy could avoid
        raise
    except TrialError as failure:
        status, error = Status.FAILED, str(failure)
    except Exception as failure:  # noqa: BLE001  # a user's function, a full GPU, a runtime: all end this trial and no other
        status, error = Status.FAILED, _one_line(failure)
        out_of_memory = isinstance(failure, torch.OutOfMemoryError)
    return TrialResult(
        number=number,
        policy=policy,
        status=status,
        metrics=metrics if status is Status.COMPLETE else {},
        rungs=tuple(reached),
        error=error,
        seed=seed,
        started=clock.started,
        seconds=clock.seconds,
        environment=environment(),
        model=f"{trial_folder(number)}/{runtime_of(target).file}" if status is Status.COMPLETE else None,
        sha256=sums,
        summary=policy.describe(baseline.layers),
        gpu=gpu.counted(device),
        out_of_memory=out_of_memory,
    )


def student_of(policy: Policy, task: Task, baseline: Baseline, train: Pairs, *, seed: int, checkpoint: bytes) -> nn.Module:
    """The model of a trial as its checkpoint says, on the CPU and in eval mode.

    Its roundings are carried out in floats: what the exported file computes, but for the rounding of integer kernels. `train`
    is the train split, `seed` that of the trial. Raises `TrialError` for the checkpoint of
    another policy.
    """
    model = baseline.model(task)
    return _compressed(model, policy, task, train, baseline, seed=seed, checkpoint=checkpoint, device=gpu.CPU).eval()


def _compressed(
    model: nn.Module,
    policy: Policy,
    task: Task,
    train: Pairs,
    baseline: Baseline,
    *,
    seed: int,
    checkpoint: bytes | None,
    device: torch.device,
) -> nn.Module:
    calibration = examples_of(train[0], calibration_rows(nested.count(train[0]), seed), device)
    student = compress(model, policy, calibration, _gradients(task, train, device), baseline.layers.groups)
    if checkpoint is not None:
        _restore(student, checkpoint)
    return student


def calibration_rows(examples: int, seed: int) -> Array:
    """Which of so many training inputs a trial with this seed calibrates by: indices of shape (at most 512,)."""
    return np.random.default_rng(seed).permutation(examples)[:_CALIBRATION]


def _measure(
    files: dict[str, bytes],
    student: nn.Module,
    target: Target,
    baseline: Baseline,
    examples: Nested,
    places: Places,
) -> dict[str, float]:
    """What the files cost; their score is another matter."""
    device = next(student.parameters()).device
    size = cost(student, nested.each(lambda part: part.to(device), examples))
    metrics = {
        "download_bytes": float(download_bytes(files[target.runtime])),
        "macs": float(size.macs),
        "params": float(size.params),
    }
    for place in target.each:
        file, name = files[place.runtime], target.metric("latency_ms", place)
        latency = places[place.name].time(file, baseline.files[place.runtime])
        metrics |= {
            target.metric("size_bytes", place): float(size_bytes(file)),
            name: latency.ratio * baseline.metrics[name],
            target.metric("latency_ratio", place): latency.ratio,
            target.metric("latency_measured_ms", place): latency.latency_ms,
        }
    return metrics


def _score(file: bytes, task: Task, place: Place, data: Data, *, expected: float) -> float:
    accuracy = score(file, data["validation"], task, place)
    low, high = task.score_range
    if abs(accuracy - expected) > _SCORE_GAP * (high - low):
        raise ExportError(f"the exported file scores {accuracy:.4f}, the student it was made from {expected:.4f}")
    return accuracy


def _first_score(file: bytes, student: nn.Module, teacher: Teacher, task: Task, place: Place, data: Data, lane: Lane) -> float:
    """The score of the file of a student that nothing is known of; a few of its outputs are compared with the student's."""
    inputs, targets = data["validation"]
    outputs = place.outputs(file, inputs)
    few, given = (nested.take(part, slice(_COMPARED)) for part in (inputs, outputs))
    _compare(given, _expected(few, student, teacher, lane))
    return checked_score(task, outputs, targets)


def _compare_further(
    files: dict[str, bytes], student: nn.Module, teacher: Teacher, target: Target, data: Data, places: Places, lane: Lane
) -> None:
    """A few outputs of the files of further targets are compared with the student's: their score is not measured."""
    if not target.also:
        return
    few = nested.take(data["validation"][0], slice(_COMPARED))
    expected = _expected(few, student, teacher, lane)
    for place in target.also:
        _compare(places[place.name].outputs(files[place.runtime], few), expected, f" for {place.name}")


def _expected(inputs: Nested, student: nn.Module, teacher: Teacher, lane: Lane) -> tuple[Nested, Nested]:
    """The outputs of the student and of the uncompressed model."""
    return student_outputs(student, inputs, lane=lane), student_outputs(teacher.model, inputs, lane=lane)


def _compare(given: Nested, expected: tuple[Nested, Nested], where: str = "") -> None:
    """By how much outputs differ is judged by how much they differ from example to example. Raises `ExportError`."""
    gap = max(map(_output_gap, *map(nested.arrays, (given, *expected))))
    if not gap <= _OUTPUT_GAP:
        raise ExportError(
            f"the outputs of the exported file{where} differ by {gap:.0%} from those of the student it was made from"
        )


def _output_gap(given: Array, expected: Array, uncompressed: Array) -> float:
    given, expected, uncompressed = (outputs.astype(np.float64) for outputs in (given, expected, uncompressed))
    spread = max(float(np.linalg.norm(outputs - outputs.mean(axis=0))) for outputs in (expected, uncompressed))
    return float(np.linalg.norm(given - expected)) / max(spread, _TINY)


def _keep(folder: Path, contents: dict[str, bytes | str]) -> None:
    try:
        for name, content in contents.items():
            write_whole(folder / name, content)
    except OSError as error:  # a full disk is no failure of the trial
        raise RunFolderError(f"cannot write to {folder}: {error.strerror}; mend that, then `autocompress resume`") from error


def _for_export(student: nn.Module) -> nn.Module:
    """A copy on the CPU, in the usual layout."""
    copy: nn.Module = deepcopy(student).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copy


def _checkpoint(student: nn.Module) -> bytes:
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in student.state_dict().items()}
    return save_tensors(arrays)


def _restore(student: nn.Module, checkpoint: bytes) -> None:
    try:
        arrays = load_tensors(checkpoint)
        student.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    except (SafetensorError, RuntimeError) as error:
        raise TrialError(f"the checkpoint does not fit the policy: {str(error).splitlines()[-1].strip()}") from error


# A worker runs many trials of one search: the teacher and its answers are computed once.
_teachers: WeakKeyDictionary[Baseline, Teacher] = WeakKeyDictionary()


def _teacher(baseline: Baseline, task: Task, device: torch.device) -> Teacher:
    if baseline not in _teachers:
        _teachers[baseline] = Teacher(baseline.model(task).to(device), baseline.layers.ends[1])
    return _teachers[baseline]


def _gradients(task: Task, train: Pairs, device: torch.device) -> Callable[[nn.Module], None]:
    few, wanted = (examples_of(part, slice(_GRADIENT_BATCH), device) for part in train)

    def leave_gradients(model: nn.Module) -> None:
        model.zero_grad()
        task.loss(nested.call(model, few), wanted).backward()

    return leave_gradients


class _Clock:
    """Seconds spent in each stage of a trial; a stage within another counts for itself alone."""

    def __init__(self) -> None:
        self.started = time.time()
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @property
    def total(self) -> float:
        return round(sum(self.seconds.values()), 4)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            own = taken - self._inner.pop()
            if self._inner:
                self._inner[-1] += taken
            self.seconds[name] = round(self.seconds.get(name, 0.0) + own, 4)

    def each(self, name: str, rungs: Iterator[Rung]) -> Iterator[Rung]:
        """Counts the time between rungs, not the time in which a rung is looked at."""
        while True:
            with self.stage(name):
                rung = next(rungs, None)
            if rung is None:
                return
            yield rung


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
