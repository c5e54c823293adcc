"""Sensitivity: how far each option alone moves the outputs of the network."""

import hashlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import platformdirs
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer

from autocompress import gpu, nested
from autocompress.baseline import Baseline, Data
from autocompress.compress import cut
from autocompress.compress.activations import quantize_activations
from autocompress.compress.calibrate import observe_activations
from autocompress.compress.repair import Seen, look, repair_examples, repair_weights
from autocompress.compress.weights import compress_weights
from autocompress.errors import AutocompressError, InputError, TaskError, TrialError
from autocompress.folder import write_whole
from autocompress.graph import BatchNorm, traced_by
from autocompress.lane import Lane
from autocompress.layer import Group
from autocompress.nested import Nested
from autocompress.option import Option, options
from autocompress.tables import Divergence, Sensitivity
from autocompress.task import Task

# Option, divergence (None: not to be used; NaN: it could not be measured this time), seconds.
Spread = Callable[[Sequence[Option]], Iterator[tuple[Option, float | None, float]]]
Heard = Callable[[int, int], None]

_log = logging.getLogger(__name__)

# Training inputs on which outputs are compared.
_EXAMPLES = 128
# Layers are refitted to these inputs, and compared on them: to more places they would be fitted too well. Rank correlations
# with what whole policies of ResNet-20 lose on other inputs: 8 places 0.973, 2 places 0.978, 1 place 0.985.
_PLACES_PER_INPUT = 1
# Enough to compare a pruned network with its masked reference.
_EXAMPLE = 8
# Float rounding, and variances over n or n - 1 examples, make a smaller difference, as a share of the largest output.
_PARITY = 0.05
# What is wrong with the machine, and with no option.
_FATAL = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
# Part of every key: to be raised when the same option would now get another figure.
_MANNER = 4


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
    after each how many of how many are done. With `fresh` it is measured in any case. A table in which an option failed with
    an error that may not come again is not kept. Raises `TaskError` when no option has a finite divergence.
    """
    known = None if fresh else stored(task, baseline, data, cache)
    if known is not None:
        return known
    wanted = options(baseline.layers, baseline.target.menu)
    key = _key(task, baseline, data, wanted)
    found: dict[Option, float | None] = {}
    seconds, lasting = 0.0, True
    for option, value, took in spread(wanted):
        failed = value is not None and math.isnan(value)
        found[option] = None if failed else value
        lasting = lasting and not failed
        seconds += took
        if heard is not None:
            heard(len(found), len(wanted))
    missed = [option for option in wanted if option not in found]
    if missed:
        raise AutocompressError(f"{len(missed)} of {len(wanted)} options were not measured, among them {missed[0]}")
    if wanted and all(value is None for value in found.values()):
        raise TaskError("no option has a finite divergence from the uncompressed model; the log says why")
    measured = Sensitivity(
        key=key,
        divergence=task.divergence_unit,
        examples=nested.count(_subset(data)),
        seconds=seconds,
        entries=tuple(Divergence(option=option, value=found[option]) for option in wanted),
    )
    if not lasting:
        _log.warning("the sensitivities are not kept: some options failed with an error that may not come again")
    elif cache is not None:
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
    options: Sequence[Option],
    task: Task,
    baseline: Baseline,
    data: Data,
    *,
    seed: int = 0,
    device: torch.device = gpu.CPU,
) -> Iterator[tuple[Option, float | None, float]]:
    """Each of `options`, how far it alone moves the outputs, and the seconds it took.

    None where that is not finite or the option cannot be carried out, NaN where it failed with an error that nobody foresaw.
    Outputs for some training inputs, drawn by `seed` and computed on `device`, are compared by `Task.divergence`. The
    reference is the uncompressed model with its batch norms re-estimated as those of every student are: what re-estimation
    alone does is no option's doing. Options come in the order in which the network runs their layers. Raises what a function
    of the task raises, and what says that memory is short.
    """
    places = {layer.name: place for place, layer in enumerate(baseline.layers)}
    groups = {group.name: {*group.writers, *group.readers, *group.branch} for group in baseline.layers.groups}
    lane = Lane()
    start = time.perf_counter()
    bench = _bench(task, baseline, data, seed, device)
    prepared = time.perf_counter() - start
    try:
        for option in sorted(options, key=lambda option: places.get(option.name, 0)):
            layers = groups[option.name] if option.what == "channel_sparsity" else {option.name}
            with lane.shared():
                start = time.perf_counter()
                value = bench.divergence(option, layers)
                took = time.perf_counter() - start
            yield option, value, prepared + took
            prepared = 0.0
    finally:
        bench.pause()


class _Bench:
    """The uncompressed model on the inputs of the comparison, and whatever its students share."""

    def __init__(self, model: nn.Module, inputs: Nested, task: Task, groups: Sequence[Group]) -> None:
        self._task = task
        self._groups = groups
        # They are attributes of the network, and constants in a graph of it.
        self._counted = {group.name for group in groups if group.counts}
        self._inputs = _in_fast_layout(inputs, model)
        self._model = model
        with _batch_norms_re_estimated(model):
            self._reference = nested.call(model, self._inputs)
        # Fails here, and not in every option, when the task's function does.
        float(task.divergence(self._reference, self._reference))
        self._seen: Seen | None = None
        graph = traced_by(_ModuleTracer(), model, self._inputs)
        self._rest = None if graph is None else _Rest(graph, self._inputs)

    def divergence(self, option: Option, layers: Collection[str]) -> float | None:
        """How far `option`, which changes `layers`, moves the outputs; see `divergences_of`."""
        try:
            rest = None if self._rest is None or option.name in self._counted else self._rest.before(layers)
            model, inputs = rest or (self._model, self._inputs)
            if self._seen is None:
                self._seen = look(self._model, self._inputs, places_per_input=_PLACES_PER_INPUT)
            outputs = _outputs(option, model, inputs, self._groups, self._seen)
        except (InputError, *_FATAL):
            raise
        except Exception as error:  # noqa: BLE001  # whatever becomes of one option, the others are measured
            _log.warning("%s: %s: %s", option, type(error).__name__, error)
            return None if isinstance(error, TrialError) else math.nan
        value = float(self._task.divergence(outputs, self._reference))
        return value if math.isfinite(value) else None

    def pause(self) -> None:
        """Lets go of what takes much memory; it is made again when it is needed."""
        self._seen = None
        if self._rest is not None:
            self._rest.restart()


def _outputs(option: Option, model: nn.Module, inputs: Nested, groups: Sequence[Group], seen: Seen) -> Nested:
    """What is made of `inputs` by what `autocompress.compress` makes of `model`, its batch norms re-estimated meanwhile.

    As there, all layers that are left are refitted to what was `seen` of the uncompressed network.
    """
    policy, student = option.policy(), deepcopy(model).eval()
    few = nested.take(inputs, slice(_EXAMPLE))
    student, kept = cut(student, policy.channel_sparsity, policy.importance, few, groups=groups)
    compress_weights(student, policy.layers)
    if option.what == "activation_bits":  # no weight was changed
        student = quantize_activations(student, [option.name], inputs)
        with _batch_norms_re_estimated(student):
            observe_activations(student, inputs)
    elif nested.count(repair_examples(inputs)) == nested.count(inputs):
        # The pass that repairs a layer goes on with the repaired one, to the outputs.
        given: list[Nested] = []
        student.register_forward_hook(
            lambda _module, _arguments, outputs: given.append(nested.each(lambda part: part, outputs))
        )
        with _batch_norms_re_estimated(student):
            repair_weights(student, seen, kept, inputs)
        return given[-1]
    else:
        repair_weights(student, seen, kept, inputs)
    with _batch_norms_re_estimated(student):
        return nested.call(student, inputs)


class _Rest:
    """The rest of a network, from a place where it needs a single value: a network of its own.

    What an option does behind that place it does there too; what comes before is not computed for every option.
    """

    def __init__(self, graph: GraphModule, inputs: Nested) -> None:
        self._graph = graph
        self._inputs = inputs
        self._examples = nested.count(inputs)
        self._nodes = list(graph.graph.nodes)
        self._doors = list(_doors(self._nodes))
        self.restart()

    def restart(self) -> None:
        self._door = -1
        self._network: GraphModule | None = None
        given = [node for node in self._nodes if node.op == "placeholder"]
        values = self._inputs.values() if isinstance(self._inputs, dict) else nested.arrays(self._inputs)
        names = list(self._inputs) if isinstance(self._inputs, dict) else [str(node.target) for node in given]
        by_name = dict(zip(names, values, strict=True))
        self._known = {node: by_name[str(node.target)] for node in given}

    def before(self, layers: Collection[str]) -> tuple[GraphModule, Tensor] | None:
        """The rest of the network with all `layers`, as short as can be, and its inputs; None when that is all of it."""
        first = next((place for place, node in enumerate(self._nodes) if _runs(node, layers)), 0)
        for door in sorted((door for door in self._doors if door < first), reverse=True):
            if door == self._door or self._enter(door):
                assert self._network is not None
                return self._network, self._known[self._nodes[door]]
            self._doors.remove(door)
        return None

    def _enter(self, door: int) -> bool:
        """Goes on to `door`. False when the rest behind it does not work on batches as the network does."""
        if door < self._door:
            self.restart()
        values = self._carry_on(door)
        if not isinstance(values, Tensor) or values.dim() < 2 or len(values) != self._examples:
            return False
        network = _network_behind(self._nodes[door], self._graph)
        try:
            with torch.no_grad():
                expected, got = nested.call(self._graph, nested.take(self._inputs, slice(2))), network(values[:2])
        except RuntimeError:
            return False
        if nested.shapes(got) != nested.shapes(expected) or not all(map(_alike, nested.arrays(got), nested.arrays(expected))):
            return False
        self._door, self._known, self._network = door, {self._nodes[door]: values}, network
        return True

    def _carry_on(self, door: int) -> Any:
        interpreter = Interpreter(self._graph, garbage_collect_values=False)
        # Copies: the network may write into its inputs.
        interpreter.env = {node: nested.each(torch.clone, value) for node, value in self._known.items()}
        fetched = [node for node in self._nodes[: max(self._door, 0)] if node.op == "get_attr"]
        with _batch_norms_re_estimated(self._graph):
            for node in (*fetched, *self._nodes[self._door + 1 : door + 1]):
                if node not in interpreter.env:
                    interpreter.env[node] = interpreter.run_node(node)
        return interpreter.env[self._nodes[door]]


class _ModuleTracer(Tracer):
    """Looks only into modules that hold others: a convolution of the user's own stays a convolution."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)


def _alike(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, atol=_PARITY * float(expected.abs().max()), rtol=0)


def _doors(nodes: Sequence[Node]) -> Iterator[int]:
    """The places behind which no value made before is needed but the one made there."""
    places = {node: place for place, node in enumerate(nodes)}
    needed_until = 0
    for place, node in enumerate(nodes):
        if node.op != "get_attr":  # what is always at hand
            if needed_until <= place and node.op not in ("placeholder", "output"):
                yield place
            needed_until = max([needed_until, *(places[user] for user in node.users)])


def _runs(node: Node, layers: Collection[str]) -> bool:
    target = str(node.target)
    return node.op == "call_module" and any(layer == target or layer.startswith(f"{target}.") for layer in layers)


def _network_behind(door: Node, graph: GraphModule) -> GraphModule:
    rest = Graph()
    # A copy: the network may write into its input, which other options need as it is.
    known = {door: rest.call_method("clone", (rest.placeholder("values"),))}
    behind = False
    for node in graph.graph.nodes:
        if behind or node.op == "get_attr":
            known[node] = rest.node_copy(node, lambda node: known[node])
        behind = behind or node is door
    return GraphModule(graph, rest)


@contextmanager
def _batch_norms_re_estimated(model: nn.Module) -> Iterator[None]:
    """In it all batch norms of `model` take their statistics from the batch they see, and keep them."""
    norms = [module for module in model.eval().modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        yield
    model.eval()


def _in_fast_layout(inputs: Nested, model: nn.Module) -> Nested:
    """Channels last where the network allows it: the same values in two thirds of the time on a CPU."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return inputs
    moved = inputs.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            nested.call(model, moved[:2])
    except RuntimeError:  # a `view` needs its values in the usual order
        return inputs
    return moved


def _subset(data: Data, seed: int = 0) -> Nested:
    inputs = data["train"][0]
    return nested.take(inputs, np.random.default_rng(seed).permutation(nested.count(inputs))[:_EXAMPLES])


# A worker measures many options of one model, in several calls.
_benches: WeakKeyDictionary[Baseline, tuple[tuple[int, torch.device], _Bench]] = WeakKeyDictionary()


def _bench(task: Task, baseline: Baseline, data: Data, seed: int, device: torch.device) -> _Bench:
    known, bench = _benches.get(baseline, (None, None))
    if bench is None or known != (seed, device):
        inputs = nested.each(lambda part: torch.tensor(part, device=device), _subset(data, seed))
        bench = _Bench(baseline.model(task).to(device), inputs, task, baseline.layers.groups)
        _benches[baseline] = (seed, device), bench
    return bench


def _key(task: Task, baseline: Baseline, data: Data, wanted: Sequence[Option]) -> str:
    """A hash of all that the figures depend on. The exported file stands for what the model does with its weights."""
    text = hashlib.sha256()
    for name, array in sorted(baseline.weights.items()):
        text.update(f"{name} {array.dtype} {array.shape}".encode())
        text.update(np.ascontiguousarray(array).tobytes())
    text.update(baseline.file)
    for name, part in nested.named(_subset(data), "").items():
        text.update(f"{name}{part.dtype} {part.shape}".encode())
        text.update(np.ascontiguousarray(part).tobytes())
    text.update(baseline.target.menu.to_json().encode())
    for option in wanted:
        text.update(option.to_json().encode())
    text.update(f"{type(task).divergence.__qualname__} {task.divergence_unit} {_MANNER}{_code(task)}".encode())
    return text.hexdigest()[:16]


def _code(task: Task) -> str:
    """The code of a task that has a `divergence` of its own: of its class, and of those it has inherited it through."""
    classes = type(task).__mro__
    where = next(place for place, one in enumerate(classes) if "divergence" in vars(one))
    if classes[where].__module__ == Task.__module__:
        return ""
    found = []
    for one in classes[: where + 1]:
        try:
            found.append(inspect.getsource(one))
        except (OSError, TypeError):  # it is in no file
            found.append(one.__qualname__)
    return "\n".join(found)


def _keep(measured: Sensitivity, cache: Path) -> None:
    try:
        write_whole(cache_file(cache, measured.key), measured.to_json(indent=1))
    except OSError as error:  # a cache that cannot be written costs time, and nothing else
        _log.warning("the sensitivities could not be kept in %s: %s", cache, error)
