import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.objective import USUAL, Limit, Objective, Scoring
from autocompress.report import front_table, nearest_lines, write_report
from autocompress.report.data import show
from autocompress.result import TrialResult
from tests.made import BASELINE, LAYERS, OBJECTIVES, made_failure, made_front, made_many, made_result, made_results, made_stop
from tests.made_evidence import made_refits, made_run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def table_of(folder: RunFolder) -> pd.DataFrame:
    return pd.read_csv(folder.path / "front.csv", index_col="number")


class Scripts(HTMLParser):
    """The scripts of a page by their id, its title, and every address it names outside of a script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: dict[str | None, str] = {}
        self.title = ""
        self.addresses: list[str | None] = []
        self._inside: tuple[str, str | None] = ("", None)
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = (tag, dict(attrs).get("id"))
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", None)

    def handle_data(self, data: str) -> None:
        tag, name = self._inside
        if tag == "script":
            self.scripts[name] = self.scripts.get(name, "") + data
        if tag == "title":
            self.title += data


def page_of(folder: RunFolder) -> Scripts:
    return Scripts((folder.path / "front.html").read_text())


def test_the_csv_has_a_row_for_every_complete_trial_the_front_first(folder: RunFolder) -> None:
    front = made_front(made_results())
    write_report(folder, front, made_results(), LAYERS, title="mnist_vgg")
    table = table_of(folder)
    assert list(table.index) == [4, 1, 0, 2]
    assert list(table["on_front"]) == [True, True, True, False]
    assert table["pick"].fillna("").to_dict() == {4: "smallest, fastest", 1: "recommended, knee", 0: "best", 2: ""}
    row = table.loc[1]
    assert (row["size_bytes"], row["size_ratio"], row["download_bytes"]) == (24_000, 17.5, 21_600)
    assert (row["latency_ms"], row["speedup"]) == (0.22, 3.636)
    assert (row["accuracy"], row["test_accuracy"]) == (0.975, pytest.approx(0.971))
    assert (row["test_low"], row["test_high"]) == (pytest.approx(0.962), pytest.approx(0.978))
    assert (row["macs"], row["params"]) == (1e6, 48_000)
    assert row["policy"] == "-50% channels, w4 a8, 101 steps, KD T=4"
    assert row["model"] == "trials/0001/model.onnx"
    assert table["test_accuracy"].isna().to_dict() == {4: False, 1: False, 0: False, 2: True}


def test_a_metric_of_the_tasks_own_has_a_column_and_an_axis(folder: RunFolder) -> None:
    results = [r.model_copy(update={"metrics": r.metrics | {"recall": 0.9 - 0.1 * r.number}}) for r in made_results()[:2]]
    objectives = (*OBJECTIVES, Objective(metric="recall", goal="max"))
    front = ParetoFront.of(results, objectives, (), BASELINE | {"recall": 0.95})
    write_report(folder, front, results, LAYERS, title="recall too")
    assert table_of(folder)["recall"].to_dict() == {0: 0.9, 1: 0.8}
    assert list(json.loads(page_of(folder).scripts["data"])["axes"]) == ["size_bytes", "latency_ms", "accuracy", "recall"]


def test_a_search_for_two_targets_in_which_every_trial_failed_has_a_report(folder: RunFolder) -> None:
    there = Objective(metric="latency_ms/openvino-cpu", goal="min")
    results = [made_failure(number, "it burst") for number in range(5)]
    front = ParetoFront.of(results, (*OBJECTIVES, there), (), BASELINE | {there.metric: 1.0})
    write_report(folder, front, results, LAYERS, title="x")
    assert there.metric in json.loads(page_of(folder).scripts["data"])["axes"]


def test_what_is_to_be_typed_is_quoted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "my run")
    folder.create()
    write_report(folder, made_front(made_results()), made_results(), LAYERS, title="x")
    data = json.loads(page_of(folder).scripts["data"])
    words = shlex.split(f"{data['export']} --pick 7 -o {data['into']}7")
    assert words[-4:] == ["--pick", "7", "-o", "my run-7"]
    assert words[2].endswith("my run")


def test_a_policy_without_a_summary_is_described(folder: RunFolder) -> None:
    results = [made_result(0, 20_000, 0.2, 0.98).model_copy(update={"summary": ""})]
    write_report(folder, made_front(results), results, LAYERS, title="x")
    assert table_of(folder).loc[0, "policy"] == "-50% channels, w4 a8, 100 steps"


def test_the_page_holds_the_front_and_no_address(folder: RunFolder) -> None:
    write_report(folder, made_front(made_results()), made_results(), LAYERS, title="mnist_vgg")
    page = page_of(folder)
    assert page.addresses == []
    data = json.loads(page.scripts["data"])
    assert data["front"] == [4, 1, 0]
    assert data["recommended"] == 1
    assert data["counts"] == "6 trials, 1 stopped early at a rung, 1 failed"
    assert (data["worth"], data["knobs"], data["sensitive"]) == (None, None, None)
    assert not (folder.path / "search.png").exists()
    assert data["limits"] == [{"metric": "accuracy", "bound": pytest.approx(0.932), "text": "accuracy >= baseline - 0.05"}]
    assert data["baseline"]["size_bytes"] == 420_000
    assert data["columns"]["policy"][1] == "-50% channels, w4 a8, 101 steps, KD T=4"
    assert data["columns"]["test_accuracy"][3] is None


def test_names_cannot_become_markup(folder: RunFolder) -> None:
    evil = "</script><script>alert(1)</script>&amp;<img src=x onerror=alert(2)>"
    results = [made_result(0, 20_000, 0.2, 0.98).model_copy(update={"summary": evil})]
    write_report(folder, made_front(results), results, LAYERS, title=evil)
    page = page_of(folder)
    assert page.title == evil
    assert page.addresses == []
    data = json.loads(page.scripts["data"])
    assert (data["title"], data["columns"]["policy"]) == (evil, [evil])
    assert "alert(1)" not in (page.scripts[None] or "")


def test_two_thousand_trials_stay_under_six_megabytes(folder: RunFolder) -> None:
    results = made_many(2000)
    write_report(folder, made_front(results, ()), results, LAYERS, title="many")
    assert (folder.path / "front.html").stat().st_size < 6_000_000
    assert len(table_of(folder)) == 2000


def picture_of(folder: RunFolder) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(io.BytesIO((folder.path / "front.png").read_bytes())))


def test_the_picture_is_large_enough_for_a_readme_and_shows_more_when_there_is_more(folder: RunFolder) -> None:
    write_report(folder, made_front(made_results()), made_results(), LAYERS, title="six")
    six = picture_of(folder)
    assert six.shape[:2] == (1000, 1600)
    results = made_many(200)
    write_report(folder, made_front(results), results, LAYERS, title="many")
    many = picture_of(folder)
    coloured = [(np.ptp(picture[..., :3], axis=2) > 0.2).sum() for picture in (six, many)]
    assert coloured[1] > coloured[0] + 5000


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("results", "limits"),
    [
        ([], ()),
        ([made_failure(0, "out of memory")], (Limit.parse("size <= 15 kB"),)),
        ([made_result(0, 20_000, 0.2, 0.5)], ()),
        ([made_result(0, 20_000, 0.2, 0.98), made_result(1, 20_000, 0.2, 0.98)], ()),
        ([made_result(0, BASELINE["size_bytes"], BASELINE["latency_ms"], BASELINE["accuracy"])], ()),
        (made_many(30), (Limit.parse("accuracy >= baseline + 0.01"), Limit.parse("size <= 10 kB"))),
    ],
    ids=["nothing", "only failures", "one bad", "twins", "like the baseline", "no limit met"],
)
def test_every_kind_of_search_has_a_report(folder: RunFolder, results: list[TrialResult], limits: tuple[Limit, ...]) -> None:
    front = made_front(results, limits)
    write_report(folder, front, results, LAYERS, title="a $x_1$ title")
    assert picture_of(folder).shape[:2] == (1000, 1600)
    assert len(table_of(folder)) == sum(bool(result.metrics) for result in results)
    data = json.loads(page_of(folder).scripts["data"])
    assert bool(data["front"]) == bool(front.members) == (not data["notes"])


def test_refits_and_seeds_are_marked_in_every_form(tmp_path: Path) -> None:
    folder, front, results = made_run(tmp_path / "run")
    write_report(folder, front, results, LAYERS, title="mnist_vgg")
    table = table_of(folder)
    assert list(table.index[:3]) == [4, 7, 0]
    row = table.loc[7]
    assert (row["refit_of"], row["remarks"]) == (1, "trained further from trial 1")
    assert (row["seeds"], row["accuracy"]) == (3, 0.976)
    assert (row["accuracy_mean"], row["accuracy_deviation"]) == (
        pytest.approx(0.9763, abs=1e-4),
        pytest.approx(0.0025, abs=1e-4),
    )
    assert table.loc[0, "remarks"] == "not clearly better than trial 7"
    assert table["refit_of"].isna().to_dict() == {number: number < 6 for number in table.index}
    columns = json.loads(page_of(folder).scripts["data"])["columns"]
    assert columns["seeds"][:3] == [None, 3, None]
    assert columns["remarks"][1] == "trained further from trial 1"
    line = next(line for line in printed(front, 150) if "★ 7" in line)
    assert "97.6 ± 0.3% (3 seeds)" in line
    assert "trained further from trial 1" in line


def test_error_bars_are_drawn_in_the_picture(folder: RunFolder) -> None:
    results = [*made_results(), *made_refits()]
    front = made_front(results)
    write_report(folder, front, results, LAYERS, title="seeds")
    with_bars = picture_of(folder)
    write_report(folder, front.model_copy(update={"spread": {}}), results, LAYERS, title="seeds")
    assert (with_bars != picture_of(folder)).any()


def printed(front: ParetoFront, width: int = 120) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(front_table(front, LAYERS))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().split("\n")


def test_the_terminal_table_says_how_much_smaller_and_faster() -> None:
    lines = printed(made_front(made_results()))
    row = next(line for line in lines if "★ 1" in line)
    cells = [cell.strip() for cell in re.split("[│┃|]", row)[1:-1]]
    assert cells == ["★ 1", "17.5x smaller", "3.6x faster", "97.5%", "97.1 ± 0.8%", "-50% channels, w4 a8, 101 steps, KD T=4"]
    first = next(line for line in lines if "uncompressed" in line)
    assert all(figure in first for figure in ("420.0 kB", "0.800 ms", "98.2%", "97.9 ± 0.9%"))
    assert [line for line in lines if "★" in line][-1].strip() == "★ recommended"


def test_the_terminal_table_fits_a_narrow_terminal_and_takes_no_markup() -> None:
    results = [made_result(0, 20_000, 0.2, 0.98).model_copy(update={"summary": "[red]not red[/red] " * 5})]
    lines = printed(made_front(results), width=80)
    assert max(len(line) for line in lines) <= 80
    assert any("[red]not" in line for line in lines)


def test_the_table_of_an_empty_front_shows_the_nearest() -> None:
    results = made_results()
    lines = printed(made_front(results, (Limit.parse("size <= 5 kB"),)))
    assert any("46.7x smaller" in line for line in lines)
    assert not any("★" in line for line in lines)


def test_nearest_lines_name_the_gap_and_the_limit_that_every_trial_misses() -> None:
    limits = (Limit.parse("accuracy >= baseline + 0.001"), Limit.parse("size <= 10 kB"))
    front = made_front(made_results(), limits)
    assert nearest_lines(front, made_results()) == [
        "None of 4 trials meets accuracy >= baseline + 0.001 and size <= 10 kB. The nearest:",
        "trial 4: 46.7x smaller, 5.3x faster, accuracy 94.0%; misses accuracy >= baseline + 0.001 by 4.3 points",
        "trial 1: 17.5x smaller, 3.6x faster, accuracy 97.5%; "
        "misses accuracy >= baseline + 0.001 by 0.8 points, misses size <= 10 kB by 14.0 kB",
        "trial 0: 7.0x smaller, 2.7x faster, accuracy 98.1%; "
        "misses accuracy >= baseline + 0.001 by 0.2 points, misses size <= 10 kB by 50.0 kB",
        "What binds: accuracy >= baseline + 0.001, missed by every trial. Loosen it, or widen the search space.",
    ]


def test_limits_that_only_conflict_are_told_from_one_that_binds() -> None:
    limits = (Limit.parse("latency <= 0.2 * baseline"), Limit.parse("accuracy >= baseline - 0.01"))
    front = made_front(made_results(), limits)
    assert nearest_lines(front, made_results())[-1] == (
        "Each limit is met by some trial, but no trial meets them all. "
        "What binds most: latency <= 0.2 * baseline, missed by 3 of 4 trials."
    )


def test_nearest_lines_without_any_complete_trial_give_the_reason() -> None:
    results = [made_failure(0, "out of memory"), made_failure(1, "out of memory"), made_failure(2, "nan"), made_stop(3)]
    assert nearest_lines(made_front(results), results) == [
        "No trial was completed, so there is nothing to choose from. The most frequent reason (2 of 4): out of memory"
    ]


def test_a_front_with_members_needs_no_excuse() -> None:
    assert nearest_lines(made_front(made_results()), made_results()) == []


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("size_bytes", 24_000, "24.0 kB"),
        ("size_bytes", 14_750_000, "14.75 MB"),
        ("latency_ms", 0.17, "0.170 ms"),
        ("latency_ms", 1.25, "1.25 ms"),
        ("latency_ms", 123.4, "123 ms"),
        ("latency_ms", 999.7, "1,000 ms"),
        ("latency_ms", 1234.5, "1,234 ms"),
        ("accuracy", 0.975, "97.5%"),
        ("accuracy", 0.9825, "98.3%"),  # as browsers round
        ("params", 270_000, "0.27 M"),
        ("macs", 1_820_000_000, "1,820 M"),
        ("recall", 0.91234, "0.9123"),
    ],
)
def test_figures_in_words(metric: str, value: float, words: str) -> None:
    assert show(metric, value, USUAL) == words


def test_a_score_that_is_no_share_is_not_shown_in_percent() -> None:
    assert show("accuracy", 0.25, Scoring(name="mean absolute error", share=False)) == "0.25"
