"""Commands for before a search: `init`, `check`, `sense`, `profile`."""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.padding import Padding
from rich.table import Table

from autocompress.cli.shared import counting, driver_named, json_option, new_console, print_json, print_line, quoted, write

if TYPE_CHECKING:
    from autocompress.drivers import Driver, Job
    from autocompress.layer import Layers


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(*, folder: Path) -> None:
    """Write a first experiment that runs as it is into FOLDER."""
    from autocompress.starter import write_starter

    for file in write_starter(folder):
        click.echo(f"wrote {file}")
    click.echo(f"try it: autocompress search {shlex.quote(str(folder / 'experiment.py'))}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, help="Other targets than the experiment's. May be repeated.")
@click.option("--quiet", is_flag=True, help="Warnings only.")
@json_option("A line of JSON for each thing that was looked at.")
def check(*, file: Path, targets: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Try out the experiment in FILE without searching."""
    from autocompress.check import check as look
    from autocompress.opened import Options

    console = new_console()
    for finding in look(file, Options(targets=targets)):
        if as_json:
            layers = None if finding.layers is None else finding.layers.model_dump(mode="json")
            print_json({"what": finding.what, "found": finding.found, "warning": finding.warning, "layers": layers})
            continue
        if quiet and not finding.warning:
            continue
        mark = "[yellow]warn[/]" if finding.warning else "[green]ok[/]  "
        console.print(f"{mark} {finding.what}:", end=" ")
        print_line(console, finding.found)
        if finding.layers is not None:
            console.print(_layers_table(finding.layers))
            for name, reason in finding.layers.left_alone.items():
                print_line(console, f"     {name} is left alone: {reason}")
    if quiet or as_json:
        return
    chosen = "".join(f" --target {shlex.quote(target)}" for target in targets)
    click.echo(f"{file} is ready: autocompress search {shlex.quote(str(file))}{chosen}")


@click.command()
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

    chosen, cache, console = driver_named(driver, address, concurrency), cache_folder(), new_console()
    with _job(file, run, chosen, targets) as job:
        what = job.experiment.task, job.baseline, job.data
        known = None if fresh else stored(*what, cache)
        if known is None:
            chosen.check()
            with counting(console, "options measured") as heard:
                spread = partial(chosen.divergences, job=job)
                known = measure(*what, spread=spread, cache=cache, heard=heard, fresh=True)
            kept = cache_file(cache, known.key)
            came = f"measured in {known.seconds:.0f} worker-seconds, "
            came += f"kept in {kept}" if kept.exists() else "not kept: the log says why"
        else:
            came = f"measured before (`--fresh` does it again), read from {cache_file(cache, known.key)}"
        tables = sensitivity_tables(known, job.baseline.layers)
    for table in tables:
        console.print(table, end="\n\n")
    print_line(console, f"thousandths of: {known.divergence}, on {known.examples} training inputs; x where it was not finite")
    print_line(console, LEGEND)
    print_line(console, came)
    if output is not None:
        write(output, known.to_json(indent=1))
        print_line(console, f"written to {output}")


@click.command()
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

    chosen, console = driver_named(driver, address, None), new_console()
    with _job(file, run, chosen, () if target is None else (target,)) as job:
        chosen.check()
        costs = chosen.costs(job, policies)
    write(output, costs.to_json(indent=1))
    console.print(costs_table(costs), end="\n\n")
    for line in costs_lines(costs):
        print_line(console, line)
    print_line(console, f"written to {output}: autocompress search {quoted(file)} --costs {quoted(output)}")


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
