"""The command line. Thin: every command calls one function, which is imported only when the command runs."""

import _thread
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table

from autocompress import __version__
from autocompress.errors import AutocompressError, InputError, unknown_name

if TYPE_CHECKING:
    from autocompress.drivers import Driver, Job
    from autocompress.front import ParetoFront
    from autocompress.layer import Layers
    from autocompress.opened import Run
    from autocompress.sensitivity import Heard
    from autocompress.verify import Checked

_DRIVERS = ("tune", "local")
# Tables that go to a pipe or a file are not squeezed into 80 columns.
_PIPE_WIDTH = 200
_INTERRUPTED = 130


@dataclass
class State:
    """What the commands share: whether to show tracebacks, and where the log of the run is."""

    debug: bool = False
    log: Path | None = None


class NothingHoldsError(Exception):
    """A command ran to its end and its answer is no: exit code 1, nothing more to say."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and ends the process.

    0 done, 1 failed or a claim that does not hold, 2 bad input, 130 interrupted by Ctrl-C, 143 told to end by SIGTERM.
    """
    state = State()
    code = 0
    try:
        with _insisting_on_ctrl_c(), _leaving_on_sigterm():
            code = cli.main(arguments, prog_name="autocompress", standalone_mode=False, obj=state) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.exceptions.Abort:
        code = _complain("interrupted", state, _INTERRUPTED)
    except click.ClickException as error:
        code = _complain(error.format_message().replace("\n", " "), state, 2)
    except InputError as error:
        code = _complain(str(error), state, 2)
    except NothingHoldsError:
        code = 1
    except AutocompressError as error:
        code = _complain(str(error), state, 1)
    except Exception as error:  # noqa: BLE001  # the last line of defence: one line instead of a traceback
        log = f"; the log is {state.log}" if state.log and state.log.exists() else ""
        hint = "" if state.debug else "; `autocompress --debug ...` shows the traceback"
        code = _complain(f"{type(error).__name__}: {' '.join(str(error).split())}{log}{hint}", state, 1)
    sys.exit(code)


@contextmanager
def _insisting_on_ctrl_c() -> Iterator[None]:
    """Presses Ctrl-C again where it was lost.

    Python drops a `KeyboardInterrupt` that falls into a callback of the garbage collector; torch has many of those.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # A little later: here it would be lost once more.
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """On SIGTERM everything is left in order: processes that were started end, and so do temporary folders."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _complain(text: str, state: State, code: int) -> int:
    if state.debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    click.echo(f"error: {' '.join(text.split())}" if code != _INTERRUPTED else text, err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="autocompress")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(state: State, *, debug: bool) -> None:
    """Finds the best ways to prune, quantise and distil a trained PyTorch model.

    Start with `autocompress init my_folder`, then `autocompress search my_folder/experiment.py`.
    """
    state.debug = debug


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run folder. [default: runs/<experiment>-<date>-<time>]")
@click.option("--space", help="A search space instead of the experiment's: uniform, per_stage, ... or a .py file.")
@click.option("--trials", type=int, help="End after so many trials (with --minutes: whichever comes first).")
@click.option("--minutes", type=float, help="End after so many minutes.")
@click.option("--sampler", help="tpe, nsga2 or random, instead of the experiment's.")
@click.option("--driver", default="tune", show_default=True, help="tune: many trials at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many trials at once.")
@click.option("--tracking-uri", help="Where MLflow keeps its runs. [default: sqlite:///<this folder>/mlflow.db]")
@click.option("--seed", type=int, help="A seed instead of the experiment's.")
@click.option("--limit", "limits", multiple=True, help="Instead of the experiment's, e.g. 'size <= 100 kB'. May be repeated.")
@click.option("--target", "targets", multiple=True, help="Where it will run, e.g. openvino-cpu:2threads. May be repeated.")
@click.option("--costs", type=click.Path(path_type=Path), help="A cost table from `autocompress profile`, perhaps elsewhere.")
@click.option("--quiet", is_flag=True, help="No progress, only the front.")
@click.pass_obj
def search(
    state: State,
    *,
    file: Path,
    run: Path | None,
    space: str | None,
    trials: int | None,
    minutes: float | None,
    sampler: str | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    tracking_uri: str | None,
    seed: int | None,
    limits: tuple[str, ...],
    targets: tuple[str, ...],
    costs: Path | None,
    quiet: bool,
) -> None:
    """Search for compressed models of the experiment in FILE."""
    from autocompress.opened import Options
    from autocompress.progress import open_view
    from autocompress.run import run_search
    from autocompress.trackers.mlflow_run import default_uri

    folder = run or Path("runs") / f"{file.stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    state.log = folder / "autocompress.log"
    chosen = _driver(driver, address, concurrency)
    options = Options(
        space=space,
        trials=trials,
        minutes=minutes,
        sampler=sampler,
        seed=seed,
        limits=limits,
        costs=None if costs is None else str(costs),
        targets=targets,
    )
    console = _console()
    with open_view(console, quiet=quiet) as view:
        run_search(
            file,
            folder,
            driver=chosen,
            tracking_uri=tracking_uri or default_uri(Path.cwd()),
            options=options,
            view=view,
        )
    _show(console, folder)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--trials", type=int, help="End when there are so many trials in all.")
@click.option("--minutes", type=float, help="End after so many minutes from now.")
@click.option("--driver", default="tune", show_default=True, help="tune: many trials at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many trials at once.")
@click.option("--tracking-uri", help="Log to another MLflow than before.")
@click.option("--quiet", is_flag=True, help="No progress, only the front.")
@click.pass_obj
def resume(
    state: State,
    *,
    run: Path,
    trials: int | None,
    minutes: float | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    tracking_uri: str | None,
    quiet: bool,
) -> None:
    """Go on with an interrupted search, or raise its budget."""
    from autocompress.progress import open_view
    from autocompress.run import resume as go_on

    state.log = run / "autocompress.log"
    chosen = _driver(driver, address, concurrency)
    console = _console()
    with open_view(console, quiet=quiet) as view:
        go_on(run, driver=chosen, trials=trials, minutes=minutes, tracking_uri=tracking_uri, view=view)
    _show(console, run)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--rivals", help="Some of uniform,random,nsga2,tpe,nsga2-warm,tpe-warm,uncompressed. [default: all]")
@click.option("--worker-seconds", type=float, help="What each may spend. [default: as much as the run has spent]")
@click.option("--driver", default="tune", show_default=True, help="tune: many trials at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many trials at once.")
@click.option("--tracking-uri", help="Log to another MLflow than the run.")
@click.option("--quiet", is_flag=True, help="No progress, only how they compare.")
@click.pass_obj
def baseline(
    state: State,
    *,
    run: Path,
    rivals: str | None,
    worker_seconds: float | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    tracking_uri: str | None,
    quiet: bool,
) -> None:
    """Give plain searchers the compute that a run had, and compare.

    Each is a run of its own in RUN/baselines; the report of RUN shows them all. Called again it goes on.
    """
    from autocompress.baselines import run_baselines
    from autocompress.progress import open_view

    state.log = run / "autocompress.log"
    chosen = _driver(driver, address, concurrency)
    console = _console()
    with open_view(console, quiet=quiet) as view:
        run_baselines(
            run,
            driver=chosen,
            rivals=None if rivals is None else rivals.split(","),
            worker_seconds=worker_seconds,
            tracking_uri=tracking_uri,
            view=view,
        )
    _show_standings(console, run)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def front(*, run: Path) -> None:
    """Show the front of a run, also while it is under way."""
    _show(_console(), run)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--pick", default="knee", show_default=True, help="knee, smallest, fastest, best, or the number of a trial.")
@click.option("--max-drop", type=float, help="Accuracy it may lose at most. [default: 0.01, or more where none keeps to that]")
@click.option("--target", help="The file for this one of the targets that were searched for. [default: the first]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
def export(*, run: Path, pick: str, max_drop: float | None, target: str | None, output: Path) -> None:
    """Write a model of the front into a folder, and verify it.

    The folder has the model's file, policy.json, verify.json and a README.txt that shows how to use it.
    """
    from autocompress.export import export as deliver
    from autocompress.opened import open_run
    from autocompress.verify import can_verify, read_claims
    from autocompress.verify import verify as measure_again

    console, opened = _console(), open_run(run)
    result = deliver(opened, pick, output, max_drop=max_drop, target=target)
    _print(console, f"trial {result.number} ({result.summary}) is in {output}")
    if can_verify(read_claims(output).target):
        _show_checked(console, measure_again(output))
    else:
        _print(console, "not verified: its runtime needs autocompress")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run folder, if it was moved since the export.")
def verify(*, folder: Path, run: Path | None) -> None:
    """Measure an exported model anew and compare with its claims.

    In a fresh process that has its runtime and numpy only.
    """
    from autocompress.verify import verify as measure_again

    _show_checked(_console(), measure_again(folder, run=run))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tracking-uri", help="Another MLflow than the run was logged to.")
def sync(*, run: Path, tracking_uri: str | None) -> None:
    """Write to MLflow what it missed of a run."""
    from autocompress.opened import open_run
    from autocompress.trackers.mlflow import sync as write_missing

    opened = open_run(run)
    if opened.is_under_way():
        raise InputError(f"a search is under way in {run}, which writes to MLflow by itself; sync when it has ended")
    front = opened.front() if opened.folder.front_json.exists() else None
    count = write_missing(opened.folder, front, layers=opened.baseline().layers, uri=tracking_uri)
    click.echo(f"wrote {count} missing {'trial' if count == 1 else 'trials'} to MLflow" if count else "MLflow has every trial")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, help="Other targets than the experiment's. May be repeated.")
def check(*, file: Path, targets: tuple[str, ...]) -> None:
    """Try out the experiment in FILE without searching."""
    from autocompress.check import check as look
    from autocompress.opened import Options

    console = _console()
    for finding in look(file, Options(targets=targets)):
        mark = "[yellow]warn[/]" if finding.warning else "[green]ok[/]  "
        console.print(f"{mark} {finding.what}:", end=" ")
        _print(console, finding.found)
        if finding.layers is not None:
            console.print(_layers_table(finding.layers))
            for name, reason in finding.layers.left_alone.items():
                _print(console, f"     {name} is left alone: {reason}")
    chosen = "".join(f" --target {shlex.quote(target)}" for target in targets)
    click.echo(f"{file} is ready: autocompress search {shlex.quote(str(file))}{chosen}")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Take the uncompressed model of this run, not a new one.")
@click.option("--driver", default="tune", show_default=True, help="tune: many options at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many options at once.")
@click.option("--target", "targets", multiple=True, help="Other targets than the experiment's. May be repeated.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file to write the figures to, as JSON.")
def sense(
    *,
    file: Path,
    run: Path | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    targets: tuple[str, ...],
    fresh: bool,
    output: Path | None,
) -> None:
    """Show how sensitive each layer is to each way to compress it."""
    from autocompress.report.sensitivities import LEGEND, sensitivity_tables
    from autocompress.sensitivity import cache_file, cache_folder, stored
    from autocompress.sensitivity import sense as measure

    chosen, cache, console = _driver(driver, address, concurrency), cache_folder(), _console()
    with _job(file, run, chosen, targets) as job:
        what = job.experiment.task, job.baseline, job.data
        known = None if fresh else stored(*what, cache)
        if known is None:
            chosen.check()
            with _counting(console, "options measured") as heard:
                spread = partial(chosen.divergences, job=job)
                known = measure(*what, spread=spread, cache=cache, heard=heard, fresh=True)
            came = f"measured in {known.seconds:.0f} worker-seconds, kept in"
        else:
            came = "measured before (`--fresh` does it again), read from"
        tables = sensitivity_tables(known, job.baseline.layers)
    for table in tables:
        console.print(table, end="\n\n")
    _print(console, f"thousandths of: {known.divergence}, on {known.examples} training inputs; x where it was not finite")
    _print(console, LEGEND)
    _print(console, f"{came} {cache_file(cache, known.key)}")
    if output is not None:
        _write(output, known.to_json(indent=1))
        _print(console, f"written to {output}")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Take the uncompressed model of this run, not a new one.")
@click.option("--policies", type=click.IntRange(min=2), default=20, show_default=True, help="Whole policies to measure.")
@click.option("--driver", default="tune", show_default=True, help="tune: where a search would time files. local: here.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--target", help="Another target than the experiment's first.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="costs.json", show_default=True, help="The file.")
def profile(
    *, file: Path, run: Path | None, policies: int, driver: str, address: str | None, target: str | None, output: Path
) -> None:
    """Measure what each layer takes on the target: time and bytes.

    The file that is written can be given to a search, also on another machine: `autocompress search FILE --costs costs.json`.
    """
    from autocompress.report.costs import costs_lines, costs_table

    chosen, console = _driver(driver, address, None), _console()
    with _job(file, run, chosen, () if target is None else (target,)) as job:
        chosen.check()
        costs = chosen.costs(job, policies)
    _write(output, costs.to_json(indent=1))
    console.print(costs_table(costs), end="\n\n")
    for line in costs_lines(costs):
        _print(console, line)
    _print(console, f"written to {output}: autocompress search {_quoted(file)} --costs {_quoted(output)}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(*, folder: Path) -> None:
    """Write a first experiment that runs as it is into FOLDER."""
    from autocompress.starter import write_starter

    for file in write_starter(folder):
        click.echo(f"wrote {file}")
    click.echo(f"try it: autocompress search {shlex.quote(str(folder / 'experiment.py'))}")


@contextmanager
def _job(file: Path, run: Path | None, driver: "Driver", targets: tuple[str, ...]) -> "Iterator[Job]":
    """The experiment in `file` with the uncompressed model of `run`, or with one that is made for this and not kept."""
    from autocompress.baseline import load_data, make_baseline
    from autocompress.drivers import Job, Site
    from autocompress.experiment import load_experiment
    from autocompress.folder import RunFolder
    from autocompress.opened import Options, open_run

    # Nothing is judged here, so limits at targets of a search do not matter.
    experiment = Options(targets=targets).apply(replace(load_experiment(file), limits=()))
    with tempfile.TemporaryDirectory(prefix="autocompress-") as passing:
        folder = RunFolder(run or passing)
        if run is None:
            with driver.places(Site(experiment, file.resolve(), folder)) as places:
                baseline = make_baseline(
                    experiment.task, experiment.target, folder.baseline, seed=experiment.seed, places=places
                )
        else:
            baseline = open_run(run).baseline()
            baseline.model(experiment.task)  # of another task it would fail in every worker
        yield Job(experiment, file.resolve(), folder, baseline, load_data(experiment.task))


@contextmanager
def _counting(console: Console, what: str) -> "Iterator[Heard]":
    """Shows how many of how many are done, on a terminal, until all are."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _write(file: Path, text: str) -> None:
    from autocompress.folder import write_whole

    try:
        write_whole(file, text)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error


def _print(console: Console, text: str) -> None:
    # A line is a line: neither wrapped, so that a command can be copied, nor read as markup.
    console.print(text, markup=False, soft_wrap=True)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def _driver(name: str, address: str | None, concurrency: int | None) -> "Driver":
    if name not in _DRIVERS:
        raise unknown_name("driver", name, _DRIVERS)
    if name == "local":
        if address is not None or concurrency not in (None, 1):
            raise InputError("the local driver runs one trial at a time on this machine; use --driver tune")
        from autocompress.drivers.local import LocalDriver

        return LocalDriver()
    from autocompress.drivers.tune import TuneDriver

    return TuneDriver(address=address, concurrency=concurrency)


def _show(console: Console, folder: Path) -> None:
    from autocompress.opened import open_run
    from autocompress.report import front_table, nearest_lines

    run = open_run(folder)
    front, results = run.front(), run.folder.results()
    failed = sum(result.status == "failed" for result in results)
    if front.members or front.nearest:
        console.print(front_table(front, run.baseline().layers))
    for line in nearest_lines(front, results):
        _print(console, line)
    many = "trial" if len(results) == 1 else "trials"
    _print(
        console,
        f"{len(front.members)} on the front of {len(results)} {many} ({failed} failed), hypervolume {front.hypervolume():.3f}",
    )
    if run.is_under_way():
        _print(console, "the search is still under way; the test split is measured when it has ended")
        return
    if front.members and not front.test:
        _print(console, f"not measured on the test split yet: autocompress resume {_quoted(folder)}")
    for what, command in _next_steps(run, front, folder):
        _print(console, f"{what:<18} {command}")
    if not front.members and not front.nearest:
        raise NothingHoldsError


def _show_standings(console: Console, folder: Path) -> None:
    from autocompress.compute import curves, standings
    from autocompress.opened import open_run
    from autocompress.report.standings import standings_table
    from autocompress.report.worth import control, verdict, worth_of

    run = open_run(folder)
    found = standings(run.folder)
    worth = worth_of(curves(run.folder), found)
    assert worth is not None
    console.print(standings_table(found))
    for line in filter(None, (verdict(worth), control(worth, run.front().baseline))):
        _print(console, line)
    _print(console, f"look at the curves {folder / 'front.html'}")


def _next_steps(run: "Run", front: "ParetoFront", folder: Path) -> Iterator[tuple[str, str]]:
    """What there is to do now, and the commands for it."""
    from autocompress.trackers.mlflow import ui_hint
    from autocompress.trackers.mlflow_run import MlflowRun

    chosen = front.recommended()
    if chosen is not None:
        yield "recommended", f"trial {chosen.number}: {chosen.summary}"
        yield "export it", f"autocompress export {_quoted(folder)} --pick knee -o {_quoted(Path(f'{folder.name}-knee'))}"
    page = run.folder.front_json.with_suffix(".html")
    if page.exists():
        yield "look at the front", str(folder / page.name)
    if run.folder.mlflow_json.exists():
        noted = MlflowRun.from_json(run.folder.mlflow_json.read_bytes(), source=run.folder.mlflow_json.name)
        yield "open MLflow", ui_hint(noted)


def _show_checked(console: Console, checked: "Sequence[Checked]") -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("claim", "claimed", "measured", "holds"):
        table.add_column(heading)
    for row in checked:
        colour = {"yes": "green", "roughly": "yellow", "no": "red"}[row.holds]
        table.add_row(row.claim, row.claimed, row.measured, f"[{colour}]{row.holds}[/]")
    console.print(table)
    if any(row.holds == "no" for row in checked):
        console.print("[red]not what it claims to be[/]")
        raise NothingHoldsError
    console.print("[green]verified[/]")


def _layers_table(layers: "Layers") -> Padding:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("layer", "kind", "weights", "parameters", "multiply-adds", "activations", "channel group"):
        table.add_column(heading, justify="right" if heading in ("parameters", "multiply-adds") else "left")
    for layer in layers:
        shape = "x".join(str(size) for size in layer.weight_shape)
        bits = "8 bits" if layer.integer else "float"
        table.add_row(
            layer.name, layer.kind, shape, f"{layer.params:,}", f"{layer.macs:,}", bits, _group_in_words(layers, layer.group)
        )
    return Padding(table, (0, 0, 0, 5), expand=False)


def _group_in_words(layers: "Layers", name: str | None) -> str:
    if name is None:
        return "-"
    group = layers.group(name)
    words = name if group.unit == 1 else f"{name}, in blocks of {group.unit}"
    return f"{words}, or without the branch" if group.branch else words
