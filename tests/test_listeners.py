"""The front file: at every moment the front of all results so far."""

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.experiment import Experiment
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.listeners import FrontFile
from autocompress.opened import read_front
from autocompress.result import TrialResult
from autocompress.testing import ToyTask
from search_spaces import uniform
from tests.made import BASELINE, made_failure, made_front, made_many, made_result

EXPERIMENT = Experiment(task=ToyTask(), space=uniform.space, limits=("accuracy >= baseline - 0.05",))


def of_all(results: list[TrialResult], experiment: Experiment = EXPERIMENT) -> ParetoFront:
    return ParetoFront.of(results, experiment.parsed_objectives, experiment.parsed_limits, BASELINE)


@pytest.mark.parametrize("limit", ["accuracy >= baseline - 0.05", "accuracy >= baseline + 1"])
def test_it_holds_the_front_of_all_results(limit: str, tmp_path: Path) -> None:
    experiment = replace(EXPERIMENT, limits=(limit,))
    folder = RunFolder(tmp_path)
    file = FrontFile(folder, experiment, BASELINE)
    results = [made_failure(0, "it burst"), *(r.model_copy(update={"number": r.number + 1}) for r in made_many(40))]
    # Two seeds of a refit, and an ordinary trial after them.
    results += [made_result(number, 9_000, 0.15, 0.97).model_copy(update={"refit_of": 5}) for number in (41, 42)]
    results.append(made_result(43, 5_000, 0.14, 0.96))
    for count, result in enumerate(results, 1):
        file.finished(result)
        assert read_front(folder) == of_all(results[:count], experiment)
    assert file.write() == read_front(folder)


def test_it_is_written_when_it_changes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    file = FrontFile(folder, EXPERIMENT, BASELINE)
    file.finished(made_result(0, 60_000, 0.30, 0.981))
    folder.front_json.unlink()
    file.finished(made_result(1, 61_000, 0.31, 0.970))
    assert not folder.front_json.exists()
    file.finished(made_result(2, 50_000, 0.31, 0.970))
    assert [member.number for member in read_front(folder).members] == [2, 0]


def test_test_scores_of_an_earlier_session_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    results = made_many(10)
    folder.record.write_text("".join(result.to_json() + "\n" for result in results))
    before = made_front(results)
    folder.front_json.write_text(before.to_json())
    file = FrontFile(folder, EXPERIMENT, BASELINE)
    file.finished(made_result(10, 1_000, 0.05, 0.94))
    now = read_front(folder)
    assert 10 in {member.number for member in now.members}
    assert now.test == {member.number: before.test[member.number] for member in now.members if member.number != 10}
    assert now.test
    assert now.baseline_test == before.baseline_test
