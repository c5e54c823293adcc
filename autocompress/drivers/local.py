"""Runs trials one after another in this process: for debugging, and for machines without Ray."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autocompress.drivers import Job, Listener
from autocompress.drivers.interrupt import on_interrupt
from autocompress.result import Rung
from autocompress.search import Asked, Search
from autocompress.trial import Progress, run_trial


class LocalDriver:
    """One trial at a time. With the same seed and policy it gives the results that `TuneDriver` gives."""

    def check(self) -> None:
        """Nothing is needed beyond this process."""

    def run(self, search: Search, job: Job, listener: Listener) -> None:
        def interrupted() -> None:
            # Python drops an interrupt that falls into a callback of the garbage collector; the search ends all the same.
            search.stop("interrupted")
            raise KeyboardInterrupt

        try:
            with _torch_threads(job.threads), on_interrupt(interrupted):
                while (asked := search.ask()) is not None:
                    _run(asked, search, job, listener)
        except KeyboardInterrupt:
            search.stop("interrupted")


def _run(asked: Asked, search: Search, job: Job, listener: Listener) -> None:
    listener.started(asked)
    result = run_trial(
        asked.policy,
        job.experiment.task,
        job.experiment.target,
        _reports_to(listener, asked.number),
        baseline=job.baseline,
        data=job.data,
        number=asked.number,
        seed=asked.seed,
        folder=job.folder.trial(asked.number),
    )
    listener.finished(result)
    search.tell(result)


def _reports_to(listener: Listener, number: int) -> Progress:
    def progress(rung: Rung) -> bool:
        listener.rung(number, rung)
        return True

    return progress


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
