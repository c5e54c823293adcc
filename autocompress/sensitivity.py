"""Sensitivity: how far each option alone moves the outputs of the network."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import platformdirs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from autocompress.baseline import Baseline, Data
from autocompress.compress import compress
from autocompress.errors import AutocompressError, InputError, TaskError
from autocompress.folder import write_whole
from autocompress.graph import trace
from autocompress.lane import Lane
from autocompress.option import Option, options
from autocompress.tables import Divergence, Sensitivity
from autocompress.task import Array, Task

Spread = Callable[[Sequence[Option]], Iterator[tuple[Option, float | None, float]]]
Heard = Callable[[int, int], None]

_log = logging.getLogger(__name__)

# Training inputs on which outputs are compared.
_EXAMPLES = 256
# Part of every key: to be raised when the same option would now get another figure.
_MANNER = 1


def cache_folder() -> Path:
    """Where sensitivities are kept from run to run: a folder of the user's."""
    return platformdirs.user_cache_path("autocompress") / "sensitivity"


def sense(
    task: Task,
    baseline: Baseline,
    data: Data,
    *,
    spread: Spread,
    cache: Path | None,
    heard: Heard | None = None,
    fresh: bool = False,
) -> Sensitivity:
    """The divergence of every option on the target's menu: from the folder `cache`, else measured and written there.

    `spread` measures options in any order: `divergences_of`, or a driver that spreads them over workers. `heard` is told
    after each how many of how many are done. With `fresh` it is measured in any case. Raises `TaskError` when no option
    has a finite divergence.
    """
    known = None if fresh else stored(task, baseline, data, cache)
    if known is not None:
        return known
    wanted = options(baseline.layers, baseline.target.menu)
    found: dict[Option, float | None] = {}
    seconds = 0.0
    for option, value, took in spread(wanted):
        found[option] = value
        seconds += took
        if heard is not None:
            heard(len(found), len(wanted))
    missed = [option for option in wanted if option not in found]
    if missed:
        raise AutocompressError(f"{len(missed)} of {len(wanted)} options were not measured, among them {missed[0]}")
    if wanted and all(value is None for value in found.values()):
        raise TaskError("no option has a finite divergence from the uncompressed model; the log says why")
    measured = Sensitivity(
        key=_key(task, baseline, data, wanted),
        divergence=task.divergence_unit,
        examples=len(_subset(data)),
        seconds=seconds,
        entries=tuple(Divergence(option=option, value=found[option]) for option in wanted),
    )
    if cache is not None:
        _keep(measured, cache)
    return measured


def stored(task: Task, baseline: Baseline, data: Data, cache: Path | None) -> Sensitivity | None:
    """What the folder `cache` knows of this model, data and menu. A damaged file counts as none."""
    if cache is None:
        return None
    wanted = options(baseline.layers, baseline.target.menu)
    key = _key(task, baseline, data, wanted)
    try:
        known = Sensitivity.from_json(cache_file(cache, key).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, InputError) as error:
        _log.warning("sensitivities are measured anew: %s", error)
        return None
    whole = known.key == key and tuple(entry.option for entry in known.entries) == wanted
    return known if whole else None


def cache_file(cache: Path, key: str) -> Path:
    """The file of the folder `cache` that holds, or will hold, the sensitivities of that key."""
    return cache / f"{key}.json"


def divergences_of(
    options: Sequence[Option], task: Task, baseline: Baseline, data: Data, *, seed: int = 0
) -> Iterator[tuple[Option, float | None, float]]:
    """Each of `options`, how far it alone moves the outputs, None when that is not finite, and the seconds it took.

    Outputs for some training inputs, drawn by `seed`, are compared by `Task.divergence`. The reference is the
    uncompressed model with its batch norms re-estimated as those of every student are: what re-estimation alone does is
    no option's doing. Options come in the order in which the network runs their layers. Raises what a function of the
    task raises.
    """
    places = {layer.name: place for place, layer in enumerate(baseline.layers)}
    lane = Lane()
    start = time.perf_counter()
    bench = _bench(task, baseline, data, seed)
    prepared = time.perf_counter() - start
    try:
        for option in sorted(options, key=lambda option: places.get(option.name, 0)):
            with lane.shared():
                start = time.perf_counter()
                value = bench.divergence(option)
                took = time.perf_counter() - start
            yield option, value, prepared + took
            prepared = 0.0
    finally:
        bench.rest()


class _Bench:
    """The uncompressed model on the inputs of the comparison, and whatever its students share.

    A batch norm that normalises by the batch it sees, all inputs at once, is re-estimated and used in one pass.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, task: Task) -> None:
        self._task = task
        self._model = model
        self._inputs = inputs
        self._layout = _fast_layout(model, inputs[:2])
        reference = self._prepared(deepcopy(model))
        with torch.no_grad():
            self._reference = reference(inputs)
        # Fails here, and not in every option, when the task's function does.
        float(task.divergence(self._reference, self._reference))
        self._beginning = _Beginning(reference, inputs) if isinstance(reference, GraphModule) else None

    def divergence(self, option: Option) -> float | None:
        """How far `option` moves the outputs; None when it cannot be carried out or the figure is not finite."""
        try:
            student = self._prepared(compress(self._model, option.policy(), self._inputs))
            with torch.no_grad():
                outputs = self._outputs_of(student)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever becomes of one option, the others are measured
            _log.warning("%s: %s: %s", option, type(error).__name__, error)
            return None
        value = float(self._task.divergence(outputs, self._reference))
        return value if math.isfinite(value) else None

    def rest(self) -> None:
        """Lets go of what takes much memory; it is made again when it is needed."""
        if self._beginning is not None:
            self._beginning.restart()

    def _prepared(self, model: nn.Module) -> nn.Module:
        """`model`, as a graph where it can be traced, ready to be carried out."""
        graph = model if isinstance(model, GraphModule) else trace(model)
        # After tracing, which leaves no module in training mode.
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.momentum = 0.0
        prepared: nn.Module = (model if graph is None else graph).to(memory_format=self._layout)  # type: ignore[call-overload]
        return prepared

    def _outputs_of(self, student: nn.Module) -> Tensor:
        if self._beginning is not None and isinstance(student, GraphModule):
            return self._beginning.go_on(student)
        outputs: Tensor = student(self._inputs)
        return outputs


class _Beginning:
    """A network's graph carried out up to a node: where a changed copy of the network differs, and not before, it goes on."""

    def __init__(self, graph: GraphModule, inputs: Tensor) -> None:
        self._graph = graph
        self._inputs = inputs
        self._nodes = list(graph.graph.nodes)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self.restart()

    def restart(self) -> None:
        self._done = 0
        self._interpreter = Interpreter(self._graph, garbage_collect_values=False)
        self._interpreter.args_iter = iter([self._inputs])

    def go_on(self, changed: GraphModule) -> Tensor:
        """The outputs of `changed`, a graph that begins like this one."""
        nodes = list(changed.graph.nodes)
        same = self._alike(changed, nodes)
        values = self._values_before(same)
        known = {node: values.get(name) for node, name in zip(nodes, (node.name for node in self._nodes[:same]), strict=False)}
        outputs: Tensor = Interpreter(changed).run(initial_env=known)
        return outputs

    def _alike(self, changed: GraphModule, nodes: list[Node]) -> int:
        """How many nodes at the beginning do the same in both graphs."""
        pairs = zip(self._nodes, nodes, strict=False)
        return next(
            place
            for place, (ours, theirs) in enumerate(pairs)
            if ours.op == "output" or _differ(ours, self._graph, theirs, changed)
        )

    def _values_before(self, place: int) -> dict[str, Any]:
        """Copies of the values made before the node at `place` and used there or later: a network may change them in place."""
        if place < self._done:
            self.restart()
        for node in self._nodes[self._done : place]:
            self._interpreter.env[node] = self._interpreter.run_node(node)
        self._done = place
        used = {node: value for node, value in self._interpreter.env.items() if self._last_use(node) >= place}
        self._interpreter.env = used
        # Together, so that two names of one tensor stay that.
        return deepcopy({node.name: value for node, value in used.items()})

    def _last_use(self, node: Node) -> int:
        return max((self._places[user] for user in node.users), default=-1)


def _differ(ours: Node, our_graph: GraphModule, theirs: Node, their_graph: GraphModule) -> bool:
    calls = [(node.op, node.target, str(node.args), str(node.kwargs)) for node in (ours, theirs)]
    if calls[0] != calls[1]:
        return True
    if ours.op == "get_attr":
        return not torch.equal(_attribute(our_graph, str(ours.target)), _attribute(their_graph, str(theirs.target)))
    if ours.op != "call_module":
        return False
    modules = [graph.get_submodule(str(ours.target)) for graph in (our_graph, their_graph)]
    states = [dict(_lasting(module)) for module in modules]
    return (
        type(modules[0]) is not type(modules[1])
        or states[0].keys() != states[1].keys()
        or not all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    )


def _attribute(graph: GraphModule, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    value: Tensor = getattr(graph.get_submodule(owner), last)
    return value


def _lasting(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of `module` that matter where batch norms normalise by the batch."""
    passing = ("running_mean", "running_var", "num_batches_tracked")
    return ((name, value) for name, value in module.state_dict().items() if not name.endswith(passing))


def _fast_layout(model: nn.Module, inputs: Tensor) -> torch.memory_format:
    """Channels last where the network allows it: the same values in two thirds of the time on a CPU."""
    moved: nn.Module = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            moved(inputs)
    except RuntimeError:  # a `view` needs its values in the usual order
        return torch.contiguous_format
    return torch.channels_last


def _subset(data: Data, seed: int = 0) -> Array:
    inputs = data["train"][0]
    return inputs[np.random.default_rng(seed).permutation(len(inputs))[:_EXAMPLES]]


# A worker measures many options of one model, in several calls.
_benches: WeakKeyDictionary[Baseline, tuple[int, _Bench]] = WeakKeyDictionary()


def _bench(task: Task, baseline: Baseline, data: Data, seed: int) -> _Bench:
    drawn, bench = _benches.get(baseline, (None, None))
    if bench is None or drawn != seed:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        inputs = torch.tensor(_subset(data, seed), device=device)
        bench = _Bench(baseline.model(task).to(device), inputs, task)
        _benches[baseline] = seed, bench
    return bench


def _key(task: Task, baseline: Baseline, data: Data, wanted: Sequence[Option]) -> str:
    """A hash of all that the figures depend on. The exported file stands for what the model does with its weights."""
    text = hashlib.sha256()
    for name, array in sorted(baseline.weights.items()):
        text.update(f"{name} {array.dtype} {array.shape}".encode())
        text.update(np.ascontiguousarray(array).tobytes())
    text.update(baseline.onnx)
    inputs = _subset(data)
    text.update(f"{inputs.dtype} {inputs.shape}".encode())
    text.update(np.ascontiguousarray(inputs).tobytes())
    text.update(baseline.target.menu.to_json().encode())
    for option in wanted:
        text.update(option.to_json().encode())
    text.update(f"{type(task).divergence.__qualname__} {task.divergence_unit} {_MANNER}".encode())
    return text.hexdigest()[:16]


def _keep(measured: Sensitivity, cache: Path) -> None:
    try:
        write_whole(cache_file(cache, measured.key), measured.to_json(indent=1))
    except OSError as error:  # a cache that cannot be written costs time, and nothing else
        _log.warning("the sensitivities could not be kept in %s: %s", cache, error)
