"""The command `compare`: several runs in one report."""

from collections.abc import Sequence
from pathlib import Path

import click

from autocompress.cli.shared import new_console, print_line, write
from autocompress.errors import InputError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="compare.html", show_default=True, help="The page.")
def compare(*, runs: tuple[Path, ...], output: Path) -> None:
    """Put several runs side by side: searches, targets or models.

    Writes one page that works offline, and a table in Markdown beside it. Runs whose figures cannot be compared (other
    hardware, data or scores) are said to be so.
    """
    from autocompress.opened import open_run
    from autocompress.report.compare_page import comparison_markdown, comparison_page, verdict
    from autocompress.report.comparison import comparison_of, contender_of

    if output.suffix == ".md":
        raise InputError(f"the table goes to {output} by itself; give the page, e.g. -o {output.with_suffix('.html')}")
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("a run is given twice")
    opened = [open_run(run) for run in runs]
    names = _told_apart([run.title for run in opened], runs)
    pairs = zip(opened, names, strict=True)
    comparison = comparison_of([contender_of(run.folder, name, run.front()) for run, name in pairs])
    table = output.with_suffix(".md")
    write(output, comparison_page(comparison))
    write(table, comparison_markdown(comparison))
    console = new_console()
    print_line(console, verdict(comparison))
    for warning in comparison.warnings:
        print_line(console, f"  {warning}")
    print_line(console, f"look at {output}, or {table} for a pull request")


def _told_apart(titles: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The names of the runs; their paths where two have the same."""
    return list(titles) if len(set(titles)) == len(titles) else [str(path) for path in paths]
