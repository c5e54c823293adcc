"""What a search found, to look at: files in the run folder, and tables for the terminal."""

from collections.abc import Sequence

from autocompress.folder import RunFolder, write_whole
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.report.contents import contents_of
from autocompress.report.data import nearest_lines
from autocompress.report.markdown import front_markdown
from autocompress.report.page import front_page
from autocompress.report.picture import front_picture
from autocompress.report.search_picture import search_picture
from autocompress.report.terminal import front_table
from autocompress.result import TrialResult

__all__ = ["front_table", "nearest_lines", "write_report"]


def write_report(folder: RunFolder, front: ParetoFront, results: Sequence[TrialResult], layers: Layers, *, title: str) -> None:
    """Writes what is to be looked at into the run folder.

    `front.csv` (a row for every complete trial), `front.html` (interactive, one file, works offline), `front.md` (for a pull
    request or a model card) and `front.png`; with trials on record also `search.png`, the hypervolume against compute. What
    the folder holds of rivals, sensitivities, costs, the importance of parameters and MLflow is shown too.
    """
    contents = contents_of(folder, front, results, layers, title)
    report, worth = contents.report, contents.evidence.worth
    write_whole(folder.front_json.with_suffix(".csv"), report.table.to_csv(index=False))
    write_whole(folder.front_json.with_suffix(".html"), front_page(contents, layers, folder))
    write_whole(folder.front_json.with_suffix(".md"), front_markdown(report, contents.decision, contents.fine_print, layers))
    write_whole(folder.front_json.with_suffix(".png"), front_picture(report))
    if worth is not None:
        write_whole(folder.path / "search.png", search_picture(worth, title))
