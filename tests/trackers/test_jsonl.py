from pathlib import Path

import pytest

from autocompress.errors import RunFolderError
from autocompress.folder import RunFolder
from autocompress.trackers.jsonl import JsonlRecord
from tests.made import made_failure, made_result, made_results


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_every_finished_trial_is_a_line_and_comes_back_as_it_was(folder: RunFolder) -> None:
    record = JsonlRecord(folder)
    for result in made_results():
        record.finished(result)
    assert folder.results() == made_results()
    assert folder.record.read_bytes().count(b"\n") == len(made_results())


def test_a_line_that_a_crash_cut_short_goes_and_the_next_is_whole(folder: RunFolder) -> None:
    record = JsonlRecord(folder)
    record.finished(made_result(0, 10_000, 0.2, 0.9))
    whole = folder.record.read_bytes()
    folder.record.write_bytes(whole + made_result(1, 9_000, 0.2, 0.9).to_json().encode()[:-7])
    JsonlRecord(folder).finished(made_failure(2, "out of memory"))
    assert [result.number for result in folder.results()] == [0, 2]
    assert folder.record.read_bytes().startswith(whole)


def test_a_torn_line_longer_than_a_block_goes_too(folder: RunFolder) -> None:
    JsonlRecord(folder).finished(made_result(0, 10_000, 0.2, 0.9))
    with folder.record.open("ab") as file:
        file.write(b'{"error": "' + b"x" * 200_000)
    JsonlRecord(folder).finished(made_result(1, 9_000, 0.2, 0.9))
    assert [result.number for result in folder.results()] == [0, 1]


def test_a_file_that_is_nothing_but_a_torn_line_is_begun_again(folder: RunFolder) -> None:
    folder.record.write_bytes(b'{"version": 1, "num')
    JsonlRecord(folder).finished(made_result(0, 10_000, 0.2, 0.9))
    assert [result.number for result in folder.results()] == [0]


def test_a_line_with_line_breaks_in_its_text_stays_one_line(folder: RunFolder) -> None:
    JsonlRecord(folder).finished(made_failure(0, "first\nsecond\r\nthird\u2028fourth"))
    assert folder.results()[0].error == "first\nsecond\r\nthird\u2028fourth"


def test_a_record_that_cannot_be_written_is_an_error_in_one_line(folder: RunFolder) -> None:
    folder.record.mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write to .*trials\.jsonl: Is a directory; .*autocompress resume"):
        JsonlRecord(folder).finished(made_result(0, 10_000, 0.2, 0.9))
