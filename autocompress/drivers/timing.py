"""The latency lane as Ray actors: all files for one target are timed on one machine, one after another.

Nothing trains there meanwhile: `measure_latency` sees to it with `autocompress.lane`. Where a node declares that it has the
target's device, files run there also to be scored.
"""

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from autocompress.drivers.cluster import has_device, lane_resources
from autocompress.drivers.endings import one_line
from autocompress.errors import InputError, TrialError, UnreachableError
from autocompress.experiment import load_experiment
from autocompress.lane import Lane
from autocompress.measure import Here, Latency, Places
from autocompress.nested import Nested
from autocompress.target import MENUS, Target

# A timing takes seconds, the outputs for a split minutes: one that takes longer than this hangs.
_SECONDS = 900.0
# Ray puts what is written there into the log of the process.
_STDERR = 2
_READY_SECONDS = 120.0


class LatencyLane:
    """`target` is JSON. What it needs for a timing comes with each call: an actor that was restarted knows nothing more.

    A runtime that the experiment brings is registered by running its file. A call that takes longer than `seconds` ends the
    process, and Ray begins another for those that queue behind it.
    """

    def __init__(self, target: str, experiment_file: str, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._here = Here(Target.from_json(target))
        if self._here.target.runtime not in MENUS:
            load_experiment(experiment_file)

    def ready(self) -> None:
        """Returns once the actor runs."""

    def time(self, model: bytes, baseline: bytes) -> Latency:
        with _limited(self._seconds):
            return self._here.time(model, baseline)

    def outputs(self, model: bytes, inputs: Nested) -> Nested:
        with _limited(self._seconds):
            return self._here.outputs(model, inputs)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends this process when the block takes longer: nothing else gets code that hangs within a runtime to end."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class Actor:
    """The lane of a target: its handle, and whether files of the target run there only."""

    handle: Any
    has_device: bool


Lanes = dict[str, Actor]


@contextmanager
def lanes(target: Target, experiment_file: Path, *, joined: bool) -> Iterator[Lanes]:
    """An actor for each target, by its name, for as long as the context lasts.

    On a cluster that was `joined`, raises `UnreachableError` when it cannot run them.
    """
    found: Lanes = {}
    try:
        for place in target.each:
            options = {"num_cpus": 0, "resources": lane_resources(place), "max_restarts": -1, "max_task_retries": 1}
            handle: Any = ray.remote(LatencyLane).options(**options).remote(place.to_json(), str(experiment_file))
            found[place.name] = Actor(handle, has_device(place))
        if joined:
            _wait_for(found)
        yield found
    finally:
        for lane in found.values():
            ray.kill(lane.handle)


def _wait_for(actors: Lanes) -> None:
    try:
        ray.get([lane.handle.ready.remote() for lane in actors.values()], timeout=_READY_SECONDS)
    except RayError as error:
        raise UnreachableError(
            f"the cluster does not run autocompress ({reason(error)}); its nodes need autocompress, Ray and Python as "
            "they are here, and the same RAY_AUTH_MODE"
        ) from error


def places_of(target: Target, actors: Lanes, files: dict[str, Any] | None = None) -> Places:
    """Where files run, given the lanes. `files` holds the uncompressed model's, by runtime, in the object store."""
    lane = Lane()
    return {
        place.name: _InLane(actors[place.name], Here(place, lane), None if files is None else files[place.runtime])
        for place in target.each
    }


@dataclass
class _InLane:
    """Files are timed in the actor, and run there when only that machine has the device, else here.

    Raises `TrialError` when the lane fails: it is the trial that has no latency then; `InputError` where no file would run.
    """

    actor: Actor
    here: Here
    baseline: Any
    _sent: tuple[Nested, Any] | None = None

    def time(self, model: bytes, baseline: bytes) -> Latency:
        latency: Latency = _answer(self.actor.handle.time.remote(model, baseline if self.baseline is None else self.baseline))
        return latency

    def outputs(self, model: bytes, inputs: Nested) -> Nested:
        if not self.actor.has_device:
            return self.here.outputs(model, inputs)
        if self._sent is None or self._sent[0] is not inputs:  # the same inputs go there once
            self._sent = inputs, ray.put(inputs)
        outputs: Nested = _answer(self.actor.handle.outputs.remote(model, self._sent[1]))
        return outputs


def _answer(reference: Any) -> Any:
    """What the lane says, however many queue before: each of them comes to its end, see `LatencyLane`."""
    try:
        return ray.get(reference)
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, InputError):
            raise error.cause from error
        raise TrialError(f"the latency lane failed: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why something in a Ray process did not come to its end, in one line."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return one_line(f"{type(error.cause).__name__}: {error.cause}")
    text = str(error)
    for preamble in ("The actor is dead because ", "Worker exit detail: "):
        text = text.rpartition(preamble)[2]
    return one_line(f"worker died: {text}")
