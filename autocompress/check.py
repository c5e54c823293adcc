"""Tries everything of an experiment that a search will need, without searching: each in a second, in plain words."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import optuna
import torch
from torch import Tensor, nn

from autocompress import gpu, nested
from autocompress.baseline import Data, Pairs, as_tensors, check_parity, load_data, load_split
from autocompress.errors import ExportError, InputError, PolicyError, TaskError
from autocompress.experiment import Experiment, is_guided, load_experiment
from autocompress.graph import trace
from autocompress.layer import Layers
from autocompress.measure import Here
from autocompress.nested import Nested
from autocompress.opened import Options
from autocompress.policy import Policy
from autocompress.probe import probe
from autocompress.runtimes import runtime_of
from autocompress.target import Target
from autocompress.task import Array, Split, Task
from autocompress.unpacked import unpacked

T = TypeVar("T")

_EXAMPLES = 8
_SAMPLES = 5
_SCORED = 512


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was found. `warning` marks what a search survives and a user should know."""

    what: str
    found: str
    warning: bool = False
    layers: Layers | None = None


def check(file: Path, options: Options | None = None) -> Iterator[Finding]:
    """Looks at one thing after another; the first that a search could not work with raises `InputError`."""
    experiment = (options or Options()).apply(load_experiment(file))
    yield Finding("experiment", _in_words(experiment))
    if gpu.is_left_idle(experiment.gpus_per_trial):
        yield Finding(
            "GPU", "not used: trials train on the CPU without gpus_per_trial, such as gpus_per_trial='auto'", warning=True
        )
    task = experiment.task
    data = {**load_data(task), "test": load_split(task, "test")}
    for split, (inputs, targets) in data.items():
        yield Finding(f"data, {split}", f"inputs {_in_figures(inputs)}; targets {_in_figures(targets)}")
    yield from _same_again(task, data)
    yield from _shared(data)
    model = _called("model()", task.model)
    if not isinstance(model, nn.Module):
        raise TaskError(f"model() must give a torch.nn.Module, given {type(model).__name__}")
    example, wanted = (nested.take(part, slice(_EXAMPLES)) for part in as_tensors(data["train"]))
    model = unpacked(model)
    layers = probe(model, example)
    without = f", {len(layers.branches)} of which a branch that can be left out" if layers.branches else ""
    yield Finding("layers", f"{len(layers)} layers, {len(layers.groups)} channel groups{without}", layers=layers)
    if trace(model, example) is None:
        yield Finding("layers", "activations stay float: the model's forward depends on the values it sees", warning=True)
    yield _loss(task, model, example, wanted)
    yield _score(task, model, data["validation"])
    yield _space(experiment, layers)
    for place in experiment.target.each:
        yield _export(place, model, example)


def _in_words(experiment: Experiment) -> str:
    objectives = ", ".join(objective.metric for objective in experiment.parsed_objectives)
    limits = ", ".join(limit.text for limit in experiment.parsed_limits) or "no limits"
    return f"{type(experiment.task).__name__}; objectives {objectives}; {limits}; {experiment.target.names}"


def _in_figures(part: Nested) -> str:
    if not isinstance(part, dict | tuple):
        return _array(part)
    return ", ".join(f"{name} {_array(array)}" for name, array in nested.named(part, "").items())


def _array(array: Array) -> str:
    values = f", {array.min():.3g} to {array.max():.3g}" if array.size and array.dtype.kind in "fiu" else ""
    return f"{'x'.join(str(size) for size in array.shape)} {array.dtype}{values}"


def _same_again(task: Task, data: Data) -> Iterator[Finding]:
    for split, (inputs, targets) in data.items():
        again = load_split(task, split)
        if not all(_equal(*pair) for pair in zip((inputs, targets), again, strict=True)):
            raise TaskError(f"data({split!r}) gives other data each time it is called; fix its random seed")
        shapes, first = (nested.shapes(nested.take(part, 0)) for part in (inputs, data["train"][0]))
        if shapes != first:
            raise TaskError(f"data({split!r}) has inputs of shape {shapes}, data('train') of {first}")
        for array in nested.arrays(inputs):
            if array.dtype.kind == "f" and array.dtype != np.float32:
                yield Finding(f"data, {split}", f"inputs are {array.dtype}; models take float32", warning=True)


def _equal(one: Nested, other: Nested) -> bool:
    ours, theirs = nested.named(one, ""), nested.named(other, "")
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _shared(data: Data) -> Iterator[Finding]:
    rows = {split: _digests(inputs) for split, (inputs, _) in data.items()}
    pairs: list[tuple[Split, Split]] = [("train", "validation"), ("train", "test"), ("validation", "test")]
    shared = {pair: len(rows[pair[0]] & rows[pair[1]]) for pair in pairs}
    for (left, right), count in shared.items():
        if count:
            what = "the same input is" if count == 1 else f"{count} inputs are"
            yield Finding("data", f"{what} in both {left} and {right}: scores will look better than they are", warning=True)
    if not any(shared.values()):
        yield Finding("data", "no example is in two splits")


def _digests(inputs: Nested) -> set[bytes]:
    return {sha256(b"".join(part.tobytes() for part in row)).digest() for row in zip(*nested.arrays(inputs), strict=True)}


def _loss(task: Task, model: nn.Module, inputs: Nested, targets: Nested) -> Finding:
    model.train()
    model.zero_grad()
    outputs = _called("the model in training mode", lambda: nested.call(model, inputs))
    examples = nested.count(inputs)
    parts = nested.arrays(outputs)
    if not parts or not all(isinstance(part, Tensor) and part.dim() and len(part) == examples for part in parts):
        raise TaskError(f"the model must give tensors with a row for each of {examples} inputs, given {nested.shapes(outputs)}")
    loss = _called("loss()", lambda: task.loss(outputs, targets))
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"loss() must give a scalar tensor, given {given}")
    if not torch.isfinite(loss):
        raise TaskError(f"loss() gave {loss.item()} on {examples} training examples; it must be finite")
    if not loss.requires_grad:
        raise TaskError("loss() is cut off from the model: no gradient flows (a .detach(), .item() or numpy in between?)")
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in reached):
        raise TaskError("loss() has gradients that are not finite")
    if len(reached) < len(trained):
        missed = len(trained) - len(reached)
        return Finding("loss", f"{loss.item():.4g}; no gradient for {missed} of {len(trained)} parameters", warning=True)
    return Finding("loss", f"{loss.item():.4g}, differentiable")


def _score(task: Task, model: nn.Module, split: Pairs) -> Finding:
    inputs, targets = (nested.take(part, slice(_SCORED)) for part in split)
    with torch.no_grad():
        outputs = nested.each(lambda part: part.numpy(), nested.call(model.eval(), nested.each(torch.tensor, inputs)))
    value = float(_called("score()", lambda: task.score(outputs, targets)))
    low, high = task.score_range
    if not np.isfinite(value):
        raise TaskError(f"score() gave {value}; it must be a finite number")
    if not low <= value <= high:
        raise TaskError(f"score() gave {value:.6g}, outside the task's score_range ({low:g} to {high:g})")
    ends = _called("interval()", lambda: task.interval(outputs, targets))
    trains = type(task).train is not Task.train
    return Finding("score", f"{value:.4f} ({ends[0]:.4f} to {ends[1]:.4f}){', before training' if trains else ''}")


def _space(experiment: Experiment, layers: Layers) -> Finding:
    if is_guided(experiment.space):
        return Finding("space", "is guided by sensitivities and costs, which are measured when the search starts")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    menu = experiment.target.menu
    seen: list[dict[str, object]] = []
    for _ in range(_SAMPLES):
        trial = study.ask()
        policy = _called("the space", partial(experiment.space, trial, layers, experiment.target))
        if not isinstance(policy, Policy):
            raise PolicyError(f"the space must return a Policy, given {type(policy).__name__}")
        policy.check(layers, menu)
        seen.append(dict(trial.distributions))
    if any(parameters != seen[0] for parameters in seen):
        return Finding("space", "asks for other parameters from trial to trial: samplers learn less from it", warning=True)
    return Finding("space", f"{len(seen[0])} parameters, {_SAMPLES} samples valid")


def _export(target: Target, model: nn.Module, inputs: Nested) -> Finding:
    try:
        file = runtime_of(target).export(model.eval(), inputs)
    except ExportError as error:
        raise TaskError(f"the model cannot be exported to {target.runtime}: {error}") from error
    gap = check_parity(model, file, inputs, Here(target))
    return Finding(f"export, {target.runtime}", f"{len(file):,} bytes, outputs within {gap:.1g} of the largest of the model's")


def _called(name: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except InputError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise TaskError(f"{name} failed: {type(error).__name__}: {text[0] if text else 'no message'}") from error
