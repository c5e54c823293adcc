"""What runs the trials of a search: one after another in this process, or many at once on Ray."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # Ray's processes load this package; none of them needs all of these
    from autocompress.baseline import Baseline, Data
    from autocompress.experiment import Experiment
    from autocompress.folder import RunFolder
    from autocompress.measure import Places
    from autocompress.option import Option
    from autocompress.result import Rung, TrialResult
    from autocompress.search import Asked, Search
    from autocompress.tables import CostTable


@dataclass(frozen=True, eq=False)
class Site:
    """What there is before anything was measured: `experiment` (read from `experiment_file`), and the run's folder."""

    experiment: "Experiment"
    experiment_file: Path
    folder: "RunFolder"

    @property
    def threads(self) -> int:
        """Threads a trial trains with: as many as CPUs are reserved for it, so that trials do not get in each other's way."""
        return max(1, int(self.experiment.cpus_per_trial))


@dataclass(frozen=True, eq=False)
class Job(Site):
    """All that the trials of one search share: the site, the uncompressed model and the data."""

    baseline: "Baseline"
    data: "Data"


class Listener(Protocol):
    """Hears what happens, in the driver's process and in order. Every call should return quickly."""

    def started(self, asked: "Asked") -> None:
        """A trial begins. Called once a trial, also when it has to be begun again on another worker."""

    def rung(self, number: int, rung: "Rung") -> None:
        """A trial under way has reached a rung. Called once a step."""

    def finished(self, result: "TrialResult") -> None:
        """A trial is over, whatever came of it. The search is told after this returns."""


class Driver(Protocol):
    """Carries out what a search asks for."""

    def check(self) -> None:
        """Raises `InputError` when it could run nothing: before time is spent on the uncompressed model."""

    def places(self, site: Site) -> "AbstractContextManager[Places]":
        """Where the files of the experiment's targets run, for who measures outside of a trial."""

    def session(self, job: Job) -> AbstractContextManager[None]:
        """Keeps the workers for all that is called within; what is called outside of it starts its own."""

    def divergences(self, options: "Sequence[Option]", job: Job) -> "Iterator[tuple[Option, float | None, float]]":
        """Measures each option alone, spread over the workers: option, divergence, worker-seconds; in any order.

        See `autocompress.sensitivity.divergences_of`. Raises `InputError` when a function of the task fails, or a worker
        dies over and over.
        """

    def costs(self, job: Job, policies: int) -> "CostTable":
        """Measures the cost table where latency is measured; see `autocompress.profile.profile`. Raises as `divergences`."""

    def run(self, search: "Search", job: Job, listener: Listener) -> None:
        """Returns when the search asks for nothing more and knows the result of every trial that was started.

        After Ctrl-C the search is stopped as "interrupted", after SIGTERM as "terminated"; trials under way are dropped, and
        it returns as usual.
        """
