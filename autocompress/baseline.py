"""The uncompressed model: trained once if it must be, exported, measured, and shared by every trial."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import nn

from autocompress import nested
from autocompress.errors import DivergedError, ExportError, InputError, RunFolderError, TaskError, TrialError
from autocompress.folder import write_whole
from autocompress.layer import Layers
from autocompress.measure import Place, Places, download_bytes, here, score, size_bytes
from autocompress.nested import Nested
from autocompress.probe import cost, probe
from autocompress.runtimes import file_name, runtime_of
from autocompress.target import Target
from autocompress.task import Array, Split, Task
from autocompress.trial_files import as_written, sums_of
from autocompress.unpacked import copied, unpacked

T = TypeVar("T")
# Inputs and targets of a split, in numpy.
Pairs = tuple[Nested, Nested]
Data = dict[Split, Pairs]

# How many inputs make an example batch.
_EXAMPLES = 8
_WEIGHTS = "weights.safetensors"
# Two runtimes add up floats in another order.
_PARITY = 1e-3


@dataclass(frozen=True, eq=False)
class Baseline:
    """The uncompressed model as arrays, its layers, its exported files by runtime, and what was measured on them.

    `metrics` holds `size_bytes`, `download_bytes`, `latency_ms`, `latency_ratio` (1), `accuracy`, `macs`, `params`, and of
    each further target the bytes and times under the names that `Target.metric` gives.
    """

    weights: dict[str, Array]
    layers: Layers
    files: dict[str, bytes]
    metrics: dict[str, float]
    target: Target

    @property
    def file(self) -> bytes:
        """The exported file for the first target."""
        return self.files[self.target.runtime]

    def model(self, task: Task) -> nn.Module:
        """A fresh copy of the trained network, in evaluation mode. Raises `TaskError` when the task now builds another."""
        model = unpacked(task.model())
        try:
            # safetensors hands out read-only arrays; torch wants its own.
            model.load_state_dict({name: torch.tensor(array) for name, array in self.weights.items()})
        except RuntimeError as error:
            raise TaskError(
                f"the task's model does not fit the stored baseline: {str(error).splitlines()[-1].strip()}"
            ) from error
        return model.eval()


def make_baseline(task: Task, target: Target, folder: Path, *, seed: int, places: Places | None = None) -> Baseline:
    """Trains the task's model if it asks for it, exports and measures it, and stores all that in `folder`.

    `places` says where files run; by default all run in this process. A folder that holds a baseline is only read. Raises
    `TaskError` when the task's functions do not work together, `RunFolderError` when the stored baseline is damaged.
    """
    if (folder / "baseline.json").exists():
        stored = load_baseline(folder)
        if stored.target != target:
            raise RunFolderError(
                f"the baseline in {folder} was measured for {stored.target.names}, the experiment asks for {target.names}; "
                "start a new run"
            )
        return stored
    data = load_data(task)
    torch.manual_seed(seed)
    # What is trained is a copy: the task may give the same object each time.
    model = copied(_checked(task.model))
    inputs, targets = as_tensors(data["train"])
    example = nested.take(inputs, slice(_EXAMPLES))
    layers = probe(unpacked(model), example)
    try:
        task.train(model, inputs, targets)
    except InputError:
        raise
    except Exception as error:
        raise TaskError(f"the task's train() failed: {type(error).__name__}: {error}") from error
    model = unpacked(model).cpu().eval()
    return _measured(model, layers, task, target, folder, data=data, places=places)


def move_baseline(known: Baseline, task: Task, target: Target, folder: Path, *, places: Places | None = None) -> Baseline:
    """The network of `known` as it was trained, exported for another `target`, measured there, and stored in `folder`.

    `places` are as for `make_baseline`. Raises `TaskError` when the task now builds another network, or when it cannot be
    exported.
    """
    model = known.model(task)
    return _measured(model, known.layers, task, target, folder, data=load_data(task), places=places)


def _measured(
    model: nn.Module, layers: Layers, task: Task, target: Target, folder: Path, *, data: Data, places: Places | None
) -> Baseline:
    places = here(target) if places is None else places
    example = nested.each(torch.tensor, nested.take(data["train"][0], slice(_EXAMPLES)))
    files = {runtime: _exported(model, example, place, places) for runtime, place in target.by_runtime.items()}
    metrics: dict[str, float] = {}
    for place in target.each:
        file = files[place.runtime]
        latency = places[place.name].time(file, file)
        metrics |= {
            target.metric("size_bytes", place): float(size_bytes(file)),
            target.metric("latency_ms", place): min(latency.latency_ms, latency.baseline_latency_ms),
            target.metric("latency_ratio", place): 1.0,
        }
    first, size = files[target.runtime], cost(model, example)
    metrics |= {
        "download_bytes": float(download_bytes(first)),
        "accuracy": _score(first, data["validation"], task, places[target.alone.name]),
        "macs": float(size.macs),
        "params": float(size.params),
    }
    weights = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in model.state_dict().items()}
    baseline = Baseline(weights=weights, layers=layers, files=files, metrics=metrics, target=target)
    _store(baseline, folder)
    return baseline


def load_baseline(folder: Path) -> Baseline:
    """What `make_baseline` stored. Raises `RunFolderError` when it is missing or damaged."""
    try:
        stored = json.loads((folder / "baseline.json").read_text())
        sums = stored["sha256"]
        return Baseline(
            weights=load_tensors(_whole(folder, _WEIGHTS, sums)),
            layers=Layers.model_validate(stored["layers"]),
            files={runtime: _whole(folder, name, sums) for runtime, name in stored["files"].items()},
            metrics=stored["metrics"],
            target=Target.model_validate(stored["target"]),
        )
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise RunFolderError(f"the baseline in {folder} is damaged ({problem}); put it back, or start a new run") from error


def _whole(folder: Path, name: str, sums: dict[str, str]) -> bytes:
    if Path(name).name != name:
        raise ValueError(f"{name!r} leads out of it")
    content = (folder / name).read_bytes()
    if not as_written(content, sums[name]):
        raise ValueError(f"{name} is not as it was written")
    return content


def load_data(task: Task) -> Data:
    """The task's train and validation splits, each as `load_split` gives it. Raises `TaskError`."""
    return {"train": load_split(task, "train"), "validation": load_split(task, "validation")}


def load_split(task: Task, split: Split) -> Pairs:
    """One split of the task, checked: as many inputs as targets, no NaN. Raises `TaskError`."""
    inputs, targets = (nested.each(np.asarray, part) for part in _checked(lambda: task.data(split), f"data({split!r})"))
    counts = [len(array) if array.ndim else 0 for part in (inputs, targets) for array in nested.arrays(part)]
    if len(set(counts)) != 1 or counts[0] < 2:
        raise TaskError(
            f"data({split!r}) must give as many inputs as targets, at least 2; given {' and '.join(map(str, counts))}"
        )
    if not all(np.isfinite(array).all() for array in nested.arrays(inputs) if array.dtype.kind == "f"):
        raise TaskError(f"data({split!r}) has inputs that are not finite numbers")
    return inputs, targets


def check_parity(model: nn.Module, file: bytes, example: Nested, place: Place) -> float:
    """The largest difference between the outputs of the uncompressed `model` and of its exported file for a batch (n, ...).

    As a share of the largest output; of truth values and whole numbers, the share of those that differ.
    Raises `TaskError` when it is more than rounding can make.
    """
    with torch.no_grad():
        expected = nested.each(lambda part: part.numpy(), nested.call(model, example))
    got = place.outputs(file, nested.each(lambda part: part.numpy(), example))
    if nested.shapes(got) != nested.shapes(expected):
        raise TaskError(f"the exported file gives {nested.shapes(got)}, the model {nested.shapes(expected)}")
    gap = max(_gap(*pair) for pair in zip(nested.arrays(got), nested.arrays(expected), strict=True))
    if not gap <= _PARITY:
        raise TaskError(
            f"the exported file differs from the model by {gap:.2%} of its largest output; it cannot be the baseline"
        )
    return gap


def _gap(got: Array, expected: Array) -> float:
    if expected.dtype.kind != "f":  # close calls may go either way
        return float((got != expected).mean())
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-6))


def as_tensors(split: Pairs) -> tuple[Nested, Nested]:
    """Inputs and targets as tensors that may be written to without changing the arrays."""
    inputs, targets = split
    return nested.each(torch.tensor, inputs), nested.each(torch.tensor, targets)


def _exported(model: nn.Module, example: Nested, place: Target, places: Places) -> bytes:
    try:
        file = runtime_of(place).export(model, example)
    except ExportError as error:
        raise TaskError(f"the uncompressed model cannot be exported for {place.runtime}: {error}") from error
    check_parity(model, file, example, places[place.name])
    return file


def _score(file: bytes, split: Pairs, task: Task, place: Place) -> float:
    try:
        value = score(file, split, task, place)
    except DivergedError as error:
        raise TaskError(f"the uncompressed model cannot be judged: {error}; score() must give a finite number") from error
    except TrialError as error:
        raise TaskError(f"the uncompressed model cannot be judged: {error}") from error
    except Exception as error:
        raise TaskError(f"the task's score() failed: {type(error).__name__}: {error}") from error
    low, high = task.score_range
    if not low <= value <= high:
        raise TaskError(f"score() gave {value:.6g}, outside the task's score_range ({low:g} to {high:g})")
    return value


def _checked(function: Callable[[], T], name: str = "model()") -> T:
    try:
        return function()
    except InputError:
        raise
    except Exception as error:
        raise TaskError(f"the task's {name} failed: {type(error).__name__}: {error}") from error


def _store(baseline: Baseline, folder: Path) -> None:
    contents = {_WEIGHTS: save_tensors(baseline.weights)}
    names = {runtime: file_name(baseline.target, place) for runtime, place in baseline.target.by_runtime.items()}
    contents |= {name: baseline.files[runtime] for runtime, name in names.items()}
    for name, content in contents.items():
        write_whole(folder / name, content)
    stored = {
        "version": 1,
        "target": baseline.target.model_dump(mode="json"),
        "files": names,
        "sha256": sums_of(contents),
        "metrics": baseline.metrics,
        "layers": baseline.layers.model_dump(mode="json"),
    }
    # Last: with this file in place the folder counts as a whole baseline.
    write_whole(folder / "baseline.json", json.dumps(stored, indent=1))
