"""What a search found, to look at: three files in the run folder, and a table for the terminal."""

from collections.abc import Sequence

from autocompress.folder import RunFolder, write_whole
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.report.data import nearest_lines, report_of
from autocompress.report.page import front_page
from autocompress.report.picture import front_picture
from autocompress.report.terminal import front_table
from autocompress.result import TrialResult

__all__ = ["front_table", "nearest_lines", "write_report"]


def write_report(folder: RunFolder, front: ParetoFront, results: Sequence[TrialResult], layers: Layers, *, title: str) -> None:
    """Writes `front.csv` (a row for every complete trial), `front.html` (interactive, one file, works offline), `front.png`."""
    report = report_of(front, results, layers, title)
    write_whole(folder.front_json.with_suffix(".csv"), report.table.to_csv(index=False))
    write_whole(folder.front_json.with_suffix(".html"), front_page(report))
    write_whole(folder.front_json.with_suffix(".png"), front_picture(report))
