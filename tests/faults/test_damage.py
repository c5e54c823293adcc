"""Files of a run that were cut short or garbled: what is good in them is used, and what was lost is said."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.numpy import save

from autocompress.drivers.local import LocalDriver
from autocompress.errors import RunFolderError, TrialError
from autocompress.export import export
from autocompress.folder import RunFolder
from autocompress.listeners import Silent
from autocompress.mending import mend, with_study_mended
from autocompress.notebook import load_run
from autocompress.opened import open_run, read_front
from autocompress.result import TrialResult
from autocompress.run import resume
from autocompress.search import Search
from autocompress.testing import ToyNet
from autocompress.trackers.mlflow import promote, sync
from autocompress.trackers.mlflow_run import MlflowRun
from autocompress.trial import _restore
from autocompress.trial_files import CHECKPOINT
from autocompress.verify import verify
from tests.toy import copy_run


class Hearing(Silent):
    """A view that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    return copy_run(toy_run, tmp_path / "run")


def in_the_middle(content: bytes) -> bytes:
    """Zeros where a block of the disk was never written."""
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {"cut": cut, "zeros": in_the_middle, "empty": lambda _: b""}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_and_study_lose_what_cannot_be_read_and_the_search_goes_on(run: Path, damage: str) -> None:
    folder = RunFolder(run)
    before = {result.number: result for result in folder.results()}
    for file in (folder.record, folder.study, folder.front_json, folder.mlflow_json):
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    whole = [line for line in folder.record.read_bytes().split(b"\n")[:-1] if line and b"\0" not in line]
    assert len(whole) < 4
    view = Hearing()
    resume(run, driver=LocalDriver(), view=view)
    after = folder.results()
    numbers = [result.number for result in after]
    assert len(numbers) == len(set(numbers)) == 4, "as many as were asked for, each once"
    kept = [result for result in after if result == before.get(result.number)]
    assert len(kept) == len(whole)
    assert read_front(folder).test.keys() == {member.number for member in read_front(folder).members}
    for name in ("front.json", "mlflow.json"):
        assert sum(f"{name} is damaged and kept as {name}.damaged" in told for told in view.warnings) == 1, view.warnings
    if damage == "zeros":
        assert any("study.log was damaged" in told for told in view.warnings)
        lost = [told for told in view.warnings if "its trial is lost" in told]
        assert len(lost) == 1, "zeros that run over line breaks make one line of several"
        assert b"\0" in (run / "trials.jsonl.damaged").read_bytes()


def test_a_garbled_line_costs_its_trial_and_no_other(run: Path) -> None:
    folder = RunFolder(run)
    lines = folder.record.read_bytes().splitlines(keepends=True)
    bad = lines[1].replace(b'"status":"complete"', b'"status":"compl\xffte"')
    folder.record.write_bytes(b"".join([lines[0], bad, *lines[2:]]))
    told: list[str] = []
    mend(folder, told.append)
    assert folder.record.read_bytes() == b"".join([lines[0], *lines[2:]])
    assert (run / "trials.jsonl.damaged").read_bytes() == bad
    (line,) = told
    assert line.startswith(f"line 2 of {folder.record} is no valid TrialResult: ")
    assert line.endswith("; its trial is lost, the line is kept in trials.jsonl.damaged")
    told.clear()
    mend(folder, told.append)
    assert told == []


@pytest.mark.parametrize(
    ("name", "instead"), [("sensitivity.json", "sensitivities are measured again"), ("costs.json", "costs are measured again")]
)
def test_a_damaged_table_is_measured_again(run: Path, name: str, instead: str) -> None:
    (run / name).write_text("{torn")
    told: list[str] = []
    mend(RunFolder(run), told.append)
    assert told == [f"{run / name} is damaged and kept as {name}.damaged; {instead}"]
    assert not (run / name).exists()


ENTRIES = {"no json": b"{\0\0}\n", "another list": b"5\n", "an entry of another kind": b'{"op_code": 99, "worker_id": "x"}\n'}


@pytest.mark.parametrize("entry", ENTRIES)
def test_of_a_damaged_study_the_sampler_keeps_the_part_before(run: Path, entry: str) -> None:
    opened, folder = open_run(run), RunFolder(run)
    experiment, baseline, recorded = opened.experiment(), opened.baseline(), folder.results()
    lines = folder.study.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    folder.study.write_bytes(b"".join([*lines[:middle], ENTRIES[entry], *lines[middle:]]))
    told: list[str] = []
    search = with_study_mended(
        lambda: Search(experiment, baseline.layers, baseline.metrics, study=folder.study, recorded=recorded),
        folder.study,
        told.append,
    )
    assert search.results == tuple(recorded)
    (line,) = told
    assert "study.log was damaged" in line
    assert "all results are in the record" in line
    assert (run / "study.log.damaged").read_bytes().count(ENTRIES[entry]) == 1
    readable = entry != "an entry of another kind"
    assert folder.study.read_bytes().startswith(b"".join(lines[:middle])) == readable


def in_a_number(content: bytes) -> bytes:
    """One bit of the last number."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("file", ["weights.safetensors", "model.onnx"])
@pytest.mark.parametrize("damage", [cut, in_a_number])
def test_a_damaged_file_of_the_baseline_is_found_out(run: Path, file: str, damage: Callable[[bytes], bytes]) -> None:
    path = run / "baseline" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFolderError, match=rf"the baseline in .* is damaged .*{file} is not as it was written.*put it back"):
        open_run(run).baseline()


def test_the_sums_of_the_baseline_are_those_of_its_files(run: Path) -> None:
    stored = json.loads((run / "baseline/baseline.json").read_text())
    for name, total in stored["sha256"].items():
        assert hashlib.sha256((run / "baseline" / name).read_bytes()).hexdigest() == total


def test_a_model_of_the_front_that_is_damaged_costs_its_test_score_only(run: Path) -> None:
    folder = RunFolder(run)
    front = read_front(folder)
    damaged, *others = front.members
    file = run / str(damaged.model)
    file.write_bytes(cut(file.read_bytes()))
    folder.front_json.write_text(front.model_copy(update={"test": {}}).to_json())
    view = Hearing()
    again = resume(run, driver=LocalDriver(), view=view)
    assert set(again.test) == {member.number for member in others}
    assert any(f"the file of trial {damaged.number} is damaged" in told for told in view.warnings), view.warnings


def everything_that_uses(run: Path, number: int, into: Path) -> dict[str, Callable[[], object]]:
    """What reads the files of a trial, by the file that it reads."""
    return {
        "model.onnx, export": lambda: export(open_run(run), str(number), into, max_drop=None),
        "model.onnx, promote": lambda: promote(
            RunFolder(run), result_of(run, number), open_run(run).front(), "staging", layers=open_run(run).baseline().layers
        ),
        f"{CHECKPOINT}, model()": lambda: load_run(run).best(number).model(),
    }


def result_of(run: Path, number: int) -> TrialResult:
    return next(result for result in RunFolder(run).results() if result.number == number)


def test_the_sums_of_a_trial_are_those_of_its_files(run: Path) -> None:
    for result in RunFolder(run).results():
        there = {file.name: file.read_bytes() for file in RunFolder(run).trial(result.number).iterdir()}
        assert result.sha256 == {name: hashlib.sha256(content).hexdigest() for name, content in there.items()}
        assert there.keys() == {"model.onnx", "policy.json", CHECKPOINT}


@pytest.mark.parametrize("damage", [cut, in_a_number])
def test_a_damaged_file_of_a_trial_is_found_out_wherever_it_is_used(
    run: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    number = read_front(RunFolder(run)).members[0].number
    for file in RunFolder(run).trial(number).iterdir():
        file.write_bytes(damage(file.read_bytes()))
    for what, use in everything_that_uses(run, number, tmp_path / "exported").items():
        file = RunFolder(run).trial(number) / what.partition(",")[0]
        with pytest.raises(RunFolderError) as caught:
            use()
        assert str(caught.value) == (
            f"the file of trial {number} is damaged: {file} has {file.stat().st_size:,} bytes that are not those written; "
            "put it back, or choose another trial"
        ), what
    assert not (tmp_path / "exported").exists()


def test_records_without_sums_are_used_as_they_are(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    for file in (folder.record, folder.front_json):
        file.write_text(re.sub(r'"sha256": ?\{[^}]*\},', "", file.read_text()))
    assert {len(result.sha256) for result in (*folder.results(), *read_front(folder).members)} == {0}
    number = read_front(folder).members[0].number
    for use in everything_that_uses(run, number, tmp_path / "exported").values():
        use()
    assert {row.holds for row in verify(tmp_path / "exported")} <= {"yes", "roughly"}


def test_verify_finds_out_that_the_uncompressed_model_has_changed(run: Path, tmp_path: Path) -> None:
    export(open_run(run), "smallest", tmp_path / "exported", max_drop=None)
    file = run / "baseline/model.onnx"
    file.write_bytes(in_a_number(file.read_bytes()))
    with pytest.raises(RunFolderError, match=r"the baseline in .* is damaged .*model\.onnx is not as it was written"):
        verify(tmp_path / "exported", run=run)


PARENT = "tags.`mlflow.parentRunId` = '{}'"


def test_a_damaged_model_of_the_front_is_not_put_into_mlflow(
    run: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(run)
    number = read_front(folder).members[0].number
    file = folder.trial(number) / "model.onnx"
    file.write_bytes(in_a_number(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        sync(folder, read_front(folder), layers=open_run(run).baseline().layers, uri=tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    noted = MlflowRun.from_json(folder.mlflow_json.read_bytes())
    found = client.search_logged_models([str(noted.experiment_id)])
    nested = {run.info.run_id for run in client.search_runs([str(noted.experiment_id)], PARENT.format(noted.parent_run_id))}
    logged = {model.name for model in found if model.source_run_id in nested}
    assert logged == {f"trial-{one.number:04d}" for one in read_front(folder).members if one.number != number}
    assert f"the file of trial {number} is damaged" in caplog.text


def test_a_checkpoint_that_was_cut_short_fails_the_refit() -> None:
    student = ToyNet()
    whole = save({name: tensor.numpy() for name, tensor in student.state_dict().items()})
    with pytest.raises(TrialError, match="the checkpoint does not fit the policy: "):
        _restore(student, cut(whole))
    _restore(student, whole)
