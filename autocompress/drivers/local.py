"""Runs trials one after another in this process: for debugging, and for machines without Ray."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from autocompress.drivers import Job, Listener, Site
from autocompress.drivers.endings import found, one_line, unmeasured
from autocompress.drivers.interrupt import on_interrupt
from autocompress.errors import AutocompressError, TaskError, TrialError
from autocompress.folder import RunFolder
from autocompress.measure import Places, here
from autocompress.option import Option
from autocompress.profile import profile
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked, Search
from autocompress.sensitivity import divergences_of
from autocompress.tables import CostTable
from autocompress.trial import CHECKPOINT, run_trial


class LocalDriver:
    """One trial at a time. With the same seed and policy it gives the results that `TuneDriver` gives."""

    def check(self) -> None:
        """Nothing is needed beyond this process."""

    def places(self, site: Site) -> AbstractContextManager[Places]:
        """See `Driver.places`: all in this process."""
        return nullcontext(here(site.experiment.target))

    def session(self, job: Job) -> AbstractContextManager[None]:
        """See `Driver.session`: there are no workers to keep."""
        return nullcontext()

    def divergences(self, options: Sequence[Option], job: Job) -> Iterator[tuple[Option, float | None, float]]:
        """See `Driver.divergences`. Raises `TaskError` when a function of the task fails."""
        with _torch_threads(job.threads), _users_errors("the sensitivities"):
            yield from divergences_of(options, job.experiment.task, job.baseline, job.data)

    def costs(self, job: Job, policies: int) -> CostTable:
        """See `Driver.costs`. Raises `TaskError` when a function of the task fails."""
        with _torch_threads(job.threads), _users_errors("the costs"):
            return profile(job.experiment.task, job.baseline, job.data, policies=policies)

    def run(self, search: Search, job: Job, listener: Listener) -> None:
        def interrupted() -> None:
            # Python drops an interrupt that falls into a callback of the garbage collector; the search ends all the same.
            search.stop("interrupted")
            raise KeyboardInterrupt

        try:
            with _torch_threads(job.threads), on_interrupt(interrupted):
                while (asked := search.ask()) is not None:
                    listener.started(asked)
                    result = _result(asked, search, job, listener)
                    listener.finished(result)
                    search.tell(result)
        except KeyboardInterrupt:
            search.stop("interrupted")


def _result(asked: Asked, search: Search, job: Job, listener: Listener) -> TrialResult:
    def progress(rung: Rung) -> bool:
        listener.rung(asked.number, rung)
        return search.report(asked.number, rung)

    started = time.time()
    try:
        checkpoint = None if asked.refit_of is None else _checkpoint(asked.refit_of, job.folder)
    except TrialError as error:
        return unmeasured(asked, job.baseline.layers, Status.FAILED, started=started, error=str(error))
    return run_trial(
        asked.policy,
        job.experiment.task,
        job.experiment.target,
        progress,
        baseline=job.baseline,
        data=job.data,
        number=asked.number,
        seed=asked.seed,
        folder=job.folder.trial(asked.number),
        rungs=job.experiment.rungs,
        screened=job.experiment.halving is not None and asked.refit_of is None,
        checkpoint=checkpoint,
        refit_of=asked.refit_of,
    )


def _checkpoint(number: int, folder: RunFolder) -> bytes:
    file = folder.trial(number) / CHECKPOINT
    return found(file.read_bytes() if file.is_file() else None, number)


@contextmanager
def _users_errors(what: str) -> Iterator[None]:
    try:
        yield
    except AutocompressError:
        raise
    except Exception as error:
        raise TaskError(f"{what} cannot be measured: {one_line(f'{type(error).__name__}: {error}')}") from error


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
