"""Commands for what a search has found: `export`, `verify`, `sync`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from autocompress.cli.shared import NothingHoldsError, State, new_console, print_line
from autocompress.credentials import secrets_of
from autocompress.errors import InputError

if TYPE_CHECKING:
    from autocompress.verify import Checked


@click.command()
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

    console, opened = new_console(), open_run(run)
    result = deliver(opened, pick, output, max_drop=max_drop, target=target)
    print_line(console, f"trial {result.number} ({result.summary}) is in {output}")
    if can_verify(read_claims(output).target):
        _show_checked(console, measure_again(output))
    else:
        print_line(console, "not verified: its runtime needs autocompress")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run folder, if it was moved since the export.")
def verify(*, folder: Path, run: Path | None) -> None:
    """Measure an exported model anew and compare with its claims.

    In a fresh process that has its runtime and numpy only.
    """
    from autocompress.verify import verify as measure_again

    _show_checked(new_console(), measure_again(folder, run=run))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tracking-uri", help="Another MLflow than the run was logged to.")
@click.pass_obj
def sync(state: State, *, run: Path, tracking_uri: str | None) -> None:
    """Write to MLflow what it missed of a run."""
    from autocompress.opened import open_run
    from autocompress.trackers.mlflow import sync as write_missing

    state.secrets = secrets_of(tracking_uri)
    opened = open_run(run)
    if opened.is_under_way():
        raise InputError(f"a search is under way in {run}, which writes to MLflow by itself; sync when it has ended")
    front = opened.front() if opened.folder.front_json.exists() else None
    count = write_missing(opened.folder, front, layers=opened.baseline().layers, uri=tracking_uri)
    click.echo(f"wrote {count} missing {'trial' if count == 1 else 'trials'} to MLflow" if count else "MLflow has every trial")


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
