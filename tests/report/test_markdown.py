from pathlib import Path

from autocompress.folder import RunFolder
from autocompress.objective import Limit
from autocompress.report import write_report
from tests.made import LAYERS, made_front, made_result, made_results
from tests.made_evidence import made_run


def markdown_of(folder: RunFolder) -> str:
    return (folder.path / "front.md").read_text()


def test_the_front_is_a_table_below_the_decision(tmp_path: Path) -> None:
    folder, front, results = made_run(tmp_path / "run")
    write_report(folder, front, results, LAYERS, title="mnist_vgg")
    text = markdown_of(folder)
    lines = text.splitlines()
    assert lines[0] == "# mnist\\_vgg"
    assert lines[2].startswith(
        "**17.5x smaller, 3.6x faster, -0.7 points; 97.2 ± 0.8% on test** (trial 7, recommended; 9 trials"
    )
    table = [line for line in lines if line.startswith("|")]
    assert table[2] == "|  | 420.0 kB | 0.800 ms | 98.2% | 97.9 ± 0.9% |  | uncompressed |"
    assert table[3].startswith("| 4 (smallest, fastest) | 9.0 kB | 0.150 ms | 94.0% | 93.6 ± 0.8% | 46.7x smaller")
    assert "97.6 ± 0.3%" in table[4]
    assert table[4].endswith("trained further from trial 1 |")
    assert len({line.count(" | ") for line in table}) == 1
    assert "--pick 7 -o run-recommended  # recommended:" in text
    assert "- **Hardware**: AMD EPYC, 2 cores, no GPU, Python 3.11.7: 7 trials." in text


def test_a_front_that_is_empty_says_what_binds(tmp_path: Path) -> None:
    limits = (Limit.parse("size <= 5 kB"),)
    write_report(RunFolder(tmp_path), made_front(made_results(), limits), made_results(), LAYERS, title="x")
    text = markdown_of(RunFolder(tmp_path))
    assert "What binds: size &lt;= 5 kB, missed by every trial." in text
    assert "--pick 4" in text


def test_names_cannot_become_markup_or_leave_their_cell(tmp_path: Path) -> None:
    evil = "<script>|`*_[x](y)\nnew"
    results = [made_result(0, 20_000, 0.2, 0.98).model_copy(update={"summary": evil})]
    write_report(RunFolder(tmp_path), made_front(results), results, LAYERS, title=evil)
    text = markdown_of(RunFolder(tmp_path))
    escaped = "&lt;script&gt;\\|\\`\\*\\_\\[x\\](y) new"
    assert text.splitlines()[0] == f"# {escaped}"
    assert f"| {escaped} |" in text
    assert "<script>" not in text
