"""Cost tables: bytes and time of each layer at each option, measured on the target, and fitted to whole policies."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from autocompress import nested
from autocompress.baseline import Baseline, Data
from autocompress.errors import InputError, TaskError
from autocompress.lane import Lane
from autocompress.layer import Layers
from autocompress.profile.layers import uses
from autocompress.profile.single import layer_costs
from autocompress.profile.whole import measured, spread_policies
from autocompress.runtimes.machine import environment
from autocompress.tables import CostTable
from autocompress.target import Target
from autocompress.task import Task

# One to fit by, and one to tell how far off that is.
_FEWEST = 2
_EXAMPLES = 2


def profile(task: Task, baseline: Baseline, data: Data, *, policies: int = 20, seed: int = 0) -> CostTable:
    """Measures the cost table of the uncompressed model on its first target, which must be this machine.

    So many whole policies are compressed without fine-tuning, exported and measured, to fit the table and to tell its
    error. Nothing trains on this machine while something is timed. Raises `InputError` for fewer than 2 policies,
    `TaskError` when hardly any can be exported.
    """
    if policies < _FEWEST:
        raise InputError(f"a cost table is fitted to at least {_FEWEST} whole policies, given {policies}")
    from autocompress.profile.fitting import fit  # with it comes scipy.stats, which no worker needs that trains

    started = time.perf_counter()
    layers, target, lane = baseline.layers, baseline.target.alone, Lane()
    model = baseline.model(task)
    with lane.shared():
        example = nested.each(torch.tensor, nested.take(data["train"][0], slice(_EXAMPLES)))
        found = uses(model, example, layers, target)
    costs = layer_costs(model, found, target, lane)
    whole = spread_policies(layers, target.menu, policies, seed=seed)
    points = list(measured(whole, task, baseline, data, lane))
    if len(points) <= _FEWEST:
        raise TaskError(f"of {policies} policies only {len(points) - 1} could be exported; `autocompress check` may say why")
    fitted = fit(costs, found, points, layers, target.menu)
    return CostTable(
        target=target,
        environment=environment(),
        layers=fitted.layers,
        rest_bytes=fitted.rest_bytes,
        intercept_ms=fitted.intercept_ms,
        slope=fitted.slope,
        size_error=fitted.size_error,
        latency_error=fitted.latency_error,
        seconds=time.perf_counter() - started,
    )


def load_costs(path: Path, target: Target, layers: Layers) -> CostTable:
    """A cost table from a file, perhaps made on another machine.

    Raises `InputError` when it cannot be read, is damaged, was made for another target, or does not know the layers.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the cost table {path}: {error.strerror}") from error
    table = CostTable.from_json(text, source=str(path))
    if table.target != target.alone:
        raise InputError(f"{path} is a cost table for {table.target.name}; the experiment's target is {target.alone.name}")
    known = {layer.name: (layer.outputs[-1], layer.inputs[-1]) for layer in table.layers}
    for layer in layers:
        if layer.name not in known:
            raise InputError(f"{path} is a cost table of another network: it lacks the layer {layer.name!r}")
        if known[layer.name] != layer.channels:
            raise InputError(
                f"{path} is a cost table of another network: its layer {layer.name!r} has {_channels(known[layer.name])}, "
                f"the experiment's has {_channels(layer.weight_shape)}"
            )
    return table


def _channels(shape: Sequence[int]) -> str:
    return f"{shape[1]} input and {shape[0]} output channels"
