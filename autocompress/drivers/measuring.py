"""What is measured before the first trial, in Ray processes: sensitivities on all workers, costs where files are timed."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from autocompress.drivers.cluster import lane_resources
from autocompress.drivers.supplies import Supplies
from autocompress.drivers.timing import reason
from autocompress.errors import AutocompressError, InputError, TaskError
from autocompress.gpu import device_for
from autocompress.option import Option
from autocompress.profile import profile
from autocompress.sensitivity import divergences_of
from autocompress.tables import CostTable


class Scorer:
    """A process that measures options.

    A reference to `Supplies` comes with each call, in a list so that Ray leaves it one: a process that is begun again
    starts without arguments.
    """

    def __init__(self) -> None:
        self._supplies: Supplies | None = None

    def score(self, options: Sequence[str], supplies: list[Any], gpus: float) -> list[tuple[str, float | None, float]]:
        """Option (JSON), divergence and seconds, for each of `options` (JSON). `gpus` is what was reserved for this process."""
        if self._supplies is None:
            self._supplies = cast(Supplies, ray.get(supplies[0]))
            self._supplies.take_place()
        work = self._supplies
        wanted, device = [Option.from_json(option) for option in options], device_for(gpus)
        measured = divergences_of(wanted, work.task, work.baseline, work.data, device=device)
        return [(option.to_json(), divergence, seconds) for option, divergence, seconds in measured]


def spread_divergences(
    options: Sequence[Option], supplies: Supplies, workers: int, *, cpus: float, gpus: float
) -> Iterator[tuple[Option, float | None, float]]:
    """See `Driver.divergences`; a worker has `cpus` and `gpus`.

    A worker that dies is replaced; one that dies twice of the same options ends it all.
    """
    chunks = _chunks(options)
    given = [ray.put(supplies)]
    scorer: Any = ray.remote(Scorer).options(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=1)
    busy: dict[Any, Any] = {}
    try:
        while chunks and len(busy) < workers:
            worker = scorer.remote()
            busy[worker.score.remote(chunks.pop(0), given, gpus)] = worker
        while busy:
            [done], _ = ray.wait(list(busy))
            measured = _got(done, "the sensitivities")
            worker = busy.pop(done)
            if chunks:
                busy[worker.score.remote(chunks.pop(0), given, gpus)] = worker
            else:
                ray.kill(worker)  # one that is begun again elsewhere may be waiting for its place
            yield from ((Option.from_json(option), divergence, seconds) for option, divergence, seconds in measured)
    finally:
        if ray.is_initialized():  # else they are gone already, and to kill them would start another Ray
            for worker in busy.values():
                ray.kill(worker)


def costs_in_lane(supplies: Supplies, policies: int) -> CostTable:
    """See `Driver.costs`."""
    table = (
        ray.remote(_costs)
        .options(num_cpus=0, resources=lane_resources(supplies.baseline.target.alone), max_retries=1)
        .remote(supplies, policies)
    )
    try:
        return CostTable.from_json(_got(table, "the costs"), source="a worker's cost table")
    except KeyboardInterrupt:
        ray.cancel(table, force=True)
        raise


def _costs(supplies: Supplies, policies: int) -> str:
    return profile(supplies.task, supplies.baseline, supplies.data, policies=policies).to_json()


def _chunks(options: Sequence[Option]) -> list[list[str]]:
    """What is done to one layer and to its group together, for it shares work; the longest first, for balance."""
    chunks: dict[str, list[str]] = {}
    for option in options:
        chunks.setdefault(option.name, []).append(option.to_json())
    return sorted(chunks.values(), key=len, reverse=True)


def _got(reference: Any, what: str) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, AutocompressError):
            raise error.cause from error
        raise TaskError(f"{what} cannot be measured: {reason(error)}") from error
    except RayError as error:
        raise InputError(f"{what} cannot be measured: {reason(error)}") from error
