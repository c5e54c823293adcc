"""Commands for what a search has found: `export`, `verify`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from autocompress.cli.shared import NothingHoldsError, json_option, new_console, print_json, print_line

if TYPE_CHECKING:
    from autocompress.verify import Checked


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--pick", default="knee", show_default=True, help="knee, smallest, fastest, best, or the number of a trial.")
@click.option("--max-drop", type=float, help="Accuracy it may lose at most. [default: 0.01, or more where none keeps to that]")
@click.option("--target", help="The file for this one of the targets that were searched for. [default: the first]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--quiet", is_flag=True, help="Say nothing, unless it is not what it claims to be.")
@json_option("One JSON document.")
def export(
    *, run: Path, pick: str, max_drop: float | None, target: str | None, output: Path, quiet: bool, as_json: bool
) -> None:
    """Write a model of the front into a folder, and verify it.

    The folder has the model's file, policy.json, verify.json and a README.md, its model card.
    """
    from autocompress.export import export as deliver
    from autocompress.opened import open_run
    from autocompress.verify import can_verify, read_claims
    from autocompress.verify import verify as measure_again

    console, opened = new_console(), open_run(run)
    result = deliver(opened, pick, output, max_drop=max_drop, target=target)
    claims = read_claims(output)
    checked = measure_again(output) if can_verify(claims.target) else None
    if as_json:
        found = {"trial": result.number, "folder": str(output), "claims": claims.model_dump(mode="json")}
        print_json(found | _verified(checked))
        _insist(checked)
        return
    if not quiet:
        print_line(console, f"trial {result.number} ({result.summary}) is in {output}")
    if checked is None:
        print_line(console, "not verified: its runtime needs autocompress")
    elif not quiet or _fails(checked):
        _show_checked(console, checked)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run folder, if it was moved since the export.")
@json_option("One JSON document.")
def verify(*, folder: Path, run: Path | None, as_json: bool) -> None:
    """Measure an exported model anew and compare with its claims.

    In a fresh process that has its runtime and numpy only.
    """
    from autocompress.verify import verify as measure_again

    checked = measure_again(folder, run=run)
    if as_json:
        print_json({"folder": str(folder), **_verified(checked)})
        _insist(checked)
        return
    _show_checked(new_console(), checked)


def _show_checked(console: Console, checked: "Sequence[Checked]") -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("claim", "claimed", "measured", "holds"):
        table.add_column(heading)
    for row in checked:
        colour = {"yes": "green", "roughly": "yellow", "no": "red"}[row.holds]
        table.add_row(row.claim, row.claimed, row.measured, f"[{colour}]{row.holds}[/]")
    console.print(table)
    if _fails(checked):
        console.print("[red]not what it claims to be[/]")
    _insist(checked)
    console.print("[green]verified[/]")


def _verified(checked: "Sequence[Checked] | None") -> dict[str, Any]:
    """As JSON: whether all claims hold (None: it was not verified), and each of them."""
    if checked is None:
        return {"verified": None, "checked": []}
    return {"verified": not _fails(checked), "checked": [asdict(row) for row in checked]}


def _fails(checked: "Sequence[Checked]") -> bool:
    return any(row.holds == "no" for row in checked)


def _insist(checked: "Sequence[Checked] | None") -> None:
    """Raises `NothingHoldsError` when a claim does not hold."""
    if checked is not None and _fails(checked):
        raise NothingHoldsError
