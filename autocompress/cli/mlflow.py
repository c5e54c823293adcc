"""Commands around MLflow: `ui`, `promote`, `sync`."""

import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autocompress.cli.shared import State, json_option, print_json
from autocompress.credentials import public_uri, secrets_of
from autocompress.errors import InputError, RunFolderError

if TYPE_CHECKING:
    from autocompress.opened import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), help="Where it listens. [default: 5000, or any that is free]")
@click.option("--tracking-uri", help="Another MLflow than the run was logged to.")
@click.pass_obj
def ui(state: State, *, run: Path, port: int | None, tracking_uri: str | None) -> None:
    """Open MLflow at the page of a run.

    Starts MLflow on the store that the run was logged to, for this machine alone, until Ctrl-C. Where that is a server
    already, its address is told.
    """
    from autocompress.folder import RunFolder
    from autocompress.trackers.mlflow import charts_page, check_reachable, noted, run_page
    from autocompress.trackers.mlflow_run import absolute_uri
    from autocompress.trackers.mlflow_server import serving

    state.secrets = secrets_of(tracking_uri)
    folder = RunFolder(run)
    folder.check()
    known = noted(folder)
    uri = absolute_uri(tracking_uri or known.tracking_uri)
    check_reachable(uri)
    if known.parent_run_id is None:
        raise RunFolderError(f"{run} is not in MLflow yet; write it by `autocompress sync {run}`")
    if uri.startswith(("http://", "https://")):
        server = public_uri(uri)
        _show(run_page(server, known), charts_page(server, known))
        return
    click.echo("starting MLflow, which takes some seconds ...", err=True)
    with serving(uri, port) as (address, process):
        _show(run_page(address, known), charts_page(address, known))
        click.echo("Ctrl-C ends it", err=True)
        try:
            process.wait()
        except KeyboardInterrupt:
            return
    raise InputError("MLflow has ended by itself")


def _show(page: str, charts: str) -> None:
    click.echo(f"the run    {page}")
    click.echo(f"all trials {charts}")
    sys.stdout.flush()
    if sys.stdout.isatty():
        webbrowser.open(page)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("trial")
@click.option(
    "--alias", required=True, help="What it is to be called, e.g. staging: the alias moves from the version it was on."
)
@click.option("--tracking-uri", help="Another MLflow than the run was logged to.")
@json_option("One JSON document.")
@click.pass_obj
def promote(state: State, *, run: Path, trial: str, alias: str, tracking_uri: str | None, as_json: bool) -> None:
    """Give the model of a trial an alias in MLflow's registry.

    TRIAL is a number, or knee, smallest, fastest or best. The model is registered if it is not yet.
    """
    from autocompress.export import choose
    from autocompress.trackers.mlflow import promote as give

    state.secrets = secrets_of(tracking_uri)
    opened = _ended(run, "promote")
    front = opened.front()
    result = choose(front, opened.folder.results(), trial, max_drop=None)
    done = give(opened.folder, result, front, alias, layers=opened.baseline().layers, uri=tracking_uri)
    uri = f"models:/{done.name}@{alias}"
    if as_json:
        found = {"trial": result.number, "name": done.name, "version": done.version, "alias": alias, "before": done.before}
        print_json(found | {"uri": uri})
        return
    moved = {None: "", done.version: ", as before"}.get(done.before, f", until now version {done.before}")
    click.echo(f"trial {result.number} is {done.name} version {done.version}, alias {alias}{moved}: {uri}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tracking-uri", help="Another MLflow than the run was logged to.")
@click.pass_obj
def sync(state: State, *, run: Path, tracking_uri: str | None) -> None:
    """Write to MLflow what it missed of a run."""
    from autocompress.trackers.mlflow import sync as write_missing

    state.secrets = secrets_of(tracking_uri)
    opened = _ended(run, "sync")
    front = opened.front() if opened.folder.front_json.exists() else None
    count = write_missing(opened.folder, front, layers=opened.baseline().layers, uri=tracking_uri)
    click.echo(f"wrote {count} missing {'trial' if count == 1 else 'trials'} to MLflow" if count else "MLflow has every trial")


def _ended(run: Path, what: str) -> "Run":
    """The run. Raises `InputError` while a search writes to MLflow by itself."""
    from autocompress.opened import open_run

    opened = open_run(run)
    if opened.is_under_way():
        raise InputError(f"a search is under way in {run}, which writes to MLflow by itself; {what} when it has ended")
    return opened
