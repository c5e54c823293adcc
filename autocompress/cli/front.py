"""The command `front`, and how a search ends: what it found, and what there is to do now."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from autocompress.cli.shared import NothingHoldsError, json_option, new_console, print_json, print_line, quoted

if TYPE_CHECKING:
    from autocompress.front import ParetoFront
    from autocompress.opened import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option("One JSON document.")
def front(*, run: Path, as_json: bool) -> None:
    """Show the front of a run, also while it is under way."""
    show_front(new_console(), run, as_json=as_json)


def show_front(console: Console, folder: Path, *, as_json: bool = False) -> None:
    from autocompress.opened import open_run
    from autocompress.report import front_table, nearest_lines
    from autocompress.summary import front_summary

    run = open_run(folder)
    front, results = run.front(), run.folder.results()
    if as_json:
        print_json({"event": "front", "run": str(folder), **front_summary(front, results)})
        if not front.members and not front.nearest:
            raise NothingHoldsError
        return
    failed = sum(result.status == "failed" for result in results)
    if front.members or front.nearest:
        console.print(front_table(front, run.baseline().layers))
    for line in nearest_lines(front, results):
        print_line(console, line)
    many = "trial" if len(results) == 1 else "trials"
    print_line(
        console,
        f"{len(front.members)} on the front of {len(results)} {many} ({failed} failed), hypervolume {front.hypervolume():.3f}",
    )
    if run.is_under_way():
        print_line(console, "the search is still under way; the test split is measured when it has ended")
        return
    if front.members and not front.test:
        print_line(console, f"not measured on the test split yet: autocompress resume {quoted(folder)}")
    for what, command in _next_steps(run, front, folder):
        print_line(console, f"{what:<18} {command}")
    if not front.members and not front.nearest:
        raise NothingHoldsError


def _next_steps(run: "Run", front: "ParetoFront", folder: Path) -> Iterator[tuple[str, str]]:
    """What there is to do now, and the commands for it."""
    from autocompress.trackers.mlflow import ui_hint
    from autocompress.trackers.mlflow_run import MlflowRun

    chosen = front.recommended()
    if chosen is not None:
        yield "recommended", f"trial {chosen.number}: {chosen.summary}"
        yield "export it", f"autocompress export {quoted(folder)} --pick knee -o {quoted(Path(f'{folder.name}-knee'))}"
    page = run.folder.front_json.with_suffix(".html")
    if page.exists():
        yield "look at the front", str(folder / page.name)
    if run.folder.mlflow_json.exists():
        noted = MlflowRun.from_json(run.folder.mlflow_json.read_bytes(), source=run.folder.mlflow_json.name)
        yield "open MLflow", ui_hint(noted)
