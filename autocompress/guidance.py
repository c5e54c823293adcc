"""What a search measures before its first trial: sensitivities and costs, and the prior made of them."""

from pathlib import Path

from autocompress.drivers import Driver, Job
from autocompress.errors import RunFolderError
from autocompress.folder import write_whole
from autocompress.listeners import View
from autocompress.prior import Prior
from autocompress.profile import load_costs
from autocompress.sensitivity import cache_folder, sense
from autocompress.tables import CostTable, Sensitivity

# Whole policies that the cost table is fitted to; `autocompress profile` takes more, to know its error well.
_POLICIES = 8


def make_prior(job: Job, driver: Driver, *, costs: Path | None, view: View) -> tuple[Prior, float]:
    """The prior of a run, and the worker-seconds that went into it (also when they went in an earlier run).

    The tables are kept in the run folder and read from there when they are in it. `costs` is a table made elsewhere.
    Raises `RunFolderError` when a stored table is damaged, `InputError` when `costs` does not suit the experiment.
    """
    sensitivity = _sensitivity(job, driver, view)
    table = _costs(job, driver, costs, view)
    experiment, baseline = job.experiment, job.baseline
    prior = Prior(
        baseline.layers, experiment.target, sensitivity, table, limits=experiment.parsed_limits, baseline=baseline.metrics
    )
    return prior, sensitivity.seconds + table.seconds


def _sensitivity(job: Job, driver: Driver, view: View) -> Sensitivity:
    file = job.folder.sensitivity
    if file.exists():
        return Sensitivity.from_json(_read(file), source=file.name)
    view.say("measuring how sensitive each layer is")
    table = sense(
        job.experiment.task,
        job.baseline,
        job.data,
        spread=lambda options: driver.divergences(options, job),
        cache=cache_folder(),
        heard=lambda done, total: view.measuring("sensitivities", done, total),
    )
    write_whole(file, table.to_json(indent=1))
    return table


def _costs(job: Job, driver: Driver, given: Path | None, view: View) -> CostTable:
    file = job.folder.costs
    if file.exists():
        return CostTable.from_json(_read(file), source=file.name)
    if given is not None:
        table = load_costs(given, job.experiment.target, job.baseline.layers)
    else:
        view.say("measuring what each layer costs on the target")
        table = driver.costs(job, _POLICIES)
    write_whole(file, table.to_json(indent=1))
    return table


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunFolderError(f"cannot read {file}: {error.strerror}") from error
