"""Runs trials one after another in this process: for debugging, and for machines without Ray."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from autocompress.drivers import Job, Listener, Site
from autocompress.drivers.alarm import Alarm
from autocompress.drivers.endings import one_line, out_of_memory, unmeasured
from autocompress.drivers.interrupt import INTERRUPTED, on_interrupt
from autocompress.errors import AutocompressError, StorageError, TaskError, TrialError
from autocompress.folder import write_whole
from autocompress.gpu import device_for
from autocompress.measure import Places, here
from autocompress.option import Option
from autocompress.profile import profile
from autocompress.result import Rung, Status, TrialResult
from autocompress.search import Asked, Search
from autocompress.sensitivity import divergences_of
from autocompress.tables import CostTable
from autocompress.trial import Progress, run_trial
from autocompress.trial_files import checkpoint_of

# Beside the files of a trial while it runs: how often it was begun.
_BEGUN = "begun"


class LocalDriver:
    """One trial at a time. With the same seed and policy it gives the results that `TuneDriver` gives.

    What ends a process (`os._exit`, a crash in native code, the kernel short of memory) ends the search; it goes on when it
    is resumed, and a trial in which the process has died more often than `Experiment.retries` has FAILED. A time limit of
    the experiment interrupts Python code, native code when it returns.
    """

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
            device = device_for(job.experiment.gpus_per_trial)
            yield from divergences_of(options, job.experiment.task, job.baseline, job.data, device=device)

    def costs(self, job: Job, policies: int) -> CostTable:
        """See `Driver.costs`. Raises `TaskError` when a function of the task fails."""
        with _torch_threads(job.threads), _users_errors("the costs"):
            return profile(job.experiment.task, job.baseline, job.data, policies=policies)

    def run(self, search: Search, job: Job, listener: Listener) -> None:
        def interrupted(reason: str) -> None:
            # Python drops an interrupt that falls into a callback of the garbage collector; the search ends all the same.
            search.stop(reason)
            raise KeyboardInterrupt

        try:
            with _torch_threads(job.threads), on_interrupt(interrupted):
                while (asked := search.ask()) is not None:
                    listener.started(asked)
                    with _marked(job.folder.trial(asked.number) / _BEGUN) as deaths:
                        result = _result(asked, search, job, listener, deaths)
                    listener.finished(result)
                    search.tell(result)
        except KeyboardInterrupt:
            search.stop(search.reason or INTERRUPTED)


def _result(asked: Asked, search: Search, job: Job, listener: Listener, deaths: int) -> TrialResult:
    alarm, reached, started = Alarm(job.experiment.trial_minutes), list[Rung](), time.time()

    def progress(rung: Rung) -> bool:
        if reached and rung.step <= reached[-1].step:  # it was begun again, and went on here before
            return True
        reached.append(rung)
        with alarm.paused():
            listener.rung(asked.number, rung)
            return search.report(asked.number, rung)

    try:
        if deaths > job.experiment.retries:
            raise TrialError(f"the process died {deaths} times in this trial; with --driver tune only a worker would")
        with alarm.running():
            result = _kept(asked, job, progress)
            if not result.out_of_memory or job.experiment.gpus_per_trial == 0:
                return result
            # What the first had taken of the GPU is given back when the second begins.
            result = _kept(asked, job, progress)
            return out_of_memory(result) if result.out_of_memory else result
    except TrialError as failure:
        error = str(failure)
    except SystemExit as end:  # of the user's code: SIGTERM raises another
        if search.reason is not None:
            raise
        error = f"SystemExit: {end}"
    return unmeasured(asked, job.baseline.layers, Status.FAILED, started=started, error=error, rungs=reached)


def _kept(asked: Asked, job: Job, progress: Progress) -> TrialResult:
    """The result of a trial whose files are where the run keeps them. Raises `StorageError` when that fails again and again."""
    storage = job.folder.storage
    if storage is None:
        return _run(asked, job, progress, job.folder.trial(asked.number))
    for left in reversed(range(1 + job.experiment.retries)):
        try:
            with TemporaryDirectory(prefix="autocompress-trial-") as scratch:
                result = _run(asked, job, progress, Path(scratch))
                if files := {path.name: path.read_bytes() for path in Path(scratch).iterdir()}:
                    storage.keep(asked.number, files)
                return result
        except StorageError:
            if not left:
                raise
    raise AssertionError


def _run(asked: Asked, job: Job, progress: Progress, folder: Path) -> TrialResult:
    checkpoint = None
    if asked.refit_of is not None:
        checkpoint = checkpoint_of(job.folder.artifacts, asked.refit_of, asked.checkpoint_sha256)
    return run_trial(
        asked.policy,
        job.experiment.task,
        job.experiment.target,
        progress,
        baseline=job.baseline,
        data=job.data,
        number=asked.number,
        seed=asked.seed,
        folder=folder,
        rungs=job.experiment.rungs,
        screened=job.experiment.halving is not None and asked.refit_of is None,
        checkpoint=checkpoint,
        refit_of=asked.refit_of,
        device=device_for(job.experiment.gpus_per_trial),
    )


@contextmanager
def _marked(file: Path) -> Iterator[int]:
    """Marks a trial as begun, for as long as this process lives. Gives how many processes have died in it."""
    deaths = len(file.read_bytes()) if file.exists() else 0
    write_whole(file, b"." * (deaths + 1))
    try:
        yield deaths
    finally:
        file.unlink(missing_ok=True)


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
