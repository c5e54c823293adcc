"""How a run compares with its rivals, for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from autocompress.compute import Standing


def standings_table(standings: Sequence[Standing]) -> Table:
    """A row for each rival, as `standings` are ordered: what it came to, what the run had by then, and how much sooner.

    Rivals that beat the run stand out.
    """
    table = Table(pad_edge=False)
    table.add_column("rival", no_wrap=True)
    for heading in (
        "trials",
        "worker-\nseconds",
        "hyper-\nvolume",
        "this run\nby then",
        "this run\nhad as much\nafter",
        "share of\nits worker-\nseconds",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in standings:
        table.add_row(
            one.rival,
            str(one.trials),
            f"{one.worker_seconds:,.0f}",
            f"{one.hypervolume:.4f}",
            f"{one.ours:.4f}",
            "never" if one.reached is None else f"{one.reached:,.0f} s" if one.hypervolume else "-",
            "-" if one.share is None else f"{one.share:.0%}",
            style="bold red" if one.hypervolume > one.ours else "",
        )
    return table
