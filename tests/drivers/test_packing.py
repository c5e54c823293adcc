"""How trials share GPUs. Ray is told of a GPU that is not there; what only a real one shows is marked `gpu`."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from autocompress import gpu
from autocompress.baseline import Baseline, Data
from autocompress.drivers import Job
from autocompress.drivers.local import LocalDriver
from autocompress.drivers.packing import ALONE, Packing, Slice, slice_for
from autocompress.drivers.tune import TuneDriver
from autocompress.errors import ExperimentError, TaskError
from autocompress.experiment import Experiment
from autocompress.option import Option
from autocompress.result import GpuMemory, Status
from autocompress.search import Search
from autocompress.testing import ToyTask
from tests.drivers.searching import Ear, experiment_file, search_of
from tests.made import made_result
from tests.ray_nodes import simulated

GB = 2**30


def _took(peak: float, outside: float = 0.5, total: float = 16) -> GpuMemory:
    return GpuMemory(peak=int(peak * GB), outside=int(outside * GB), total=int(total * GB))


@pytest.mark.parametrize(
    ("seen", "gpus", "cap"),
    [
        ([], None, None),
        ([_took(2.8)], 0.25, 0.25 - 0.5 / 16),  # four times 1.25 * 2.8 + 0.5
        ([_took(2.9)], 0.3333, 0.3333 - 0.5 / 16),
        ([_took(6)], 0.5, 0.5 - 0.5 / 16),
        ([_took(6.1)], 1.0, 1.0),
        ([_took(15.5)], 1.0, 1.0),
        ([_took(1), _took(6, outside=12)], 0.5, 0.5 - 0.5 / 16),  # the second had a neighbour
        ([_took(2.8, total=80), _took(2.8)], 0.25, 0.25 - 0.5 / 16),  # a small GPU must do too
    ],
)
def test_trials_share_by_the_most_that_one_took(seen: list[GpuMemory], gpus: float | None, cap: float | None) -> None:
    part = slice_for(seen)
    assert (part.gpus if part else None) == gpus
    assert (part.cap if part else None) == (None if cap is None else pytest.approx(cap))


@given(peak=st.integers(0, 20 * GB), outside=st.integers(0, 2 * GB), total=st.integers(1 * GB, 80 * GB))
def test_those_who_share_a_gpu_have_room_on_it(peak: int, outside: int, total: int) -> None:
    part = slice_for([GpuMemory(peak=peak, outside=outside, total=total)])
    assert part is not None
    assert 0 < part.gpus <= 1
    assert 0 <= part.cap <= 1
    many = int(1 / part.gpus)
    assert many * part.gpus <= 1
    if part != ALONE:
        assert part.cap * total >= peak, "it would fit"
        assert many * (part.cap * total + outside) <= total * 1.001, "they all do"


def test_what_trials_are_given_follows_the_record() -> None:
    small, large = (made_result(n, 1e4, 1.0, 0.9).model_copy(update={"gpu": _took(peak)}) for n, peak in ((1, 1), (2, 6)))
    failed = large.model_copy(update={"status": Status.FAILED})
    packing = Packing("auto", there=True)
    assert (packing.probing, packing.next, packing.alone) == (True, ALONE, ALONE)
    packing.learn(failed)
    assert packing.probing
    for result, gpus in ((small, 0.1111), (large, 0.5), (small, 0.5)):
        packing.learn(result)
        assert (packing.probing, packing.next.gpus) == (False, gpus)
    resumed = Packing("auto", there=True, results=[failed, large])
    assert (resumed.probing, resumed.next) == (False, packing.next)


def test_where_nothing_is_shared() -> None:
    assert Packing("auto", there=False).next == Packing(0, there=True).next == Slice(0.0)
    for gpus, part, alone in (
        (0, Slice(0), Slice(0)),
        (0.5, Slice(0.5, 0.5), ALONE),
        (1, ALONE, ALONE),
        (2, Slice(2), Slice(2)),
    ):
        packing = Packing(gpus, there=True)
        packing.learn(made_result(1, 1e4, 1.0, 0.9).model_copy(update={"gpu": _took(1)}))
        assert (packing.next, packing.alone, packing.probing) == (part, alone, False)
    blind = Packing("auto", there=True)
    blind.learn(made_result(1, 1e4, 1.0, 0.9))
    assert (blind.next, blind.probing) == (ALONE, False), "a torch without CUDA measures nothing"


@pytest.mark.parametrize("gpus", ["all", -1, 1.5, float("nan"), None])
def test_shares_that_mean_nothing(gpus: object) -> None:
    with pytest.raises(ExperimentError, match="gpus_per_trial is a share of a GPU, a whole number of them, or 'auto'; given"):
        Experiment(task=ToyTask(), space=lambda *_: None, gpus_per_trial=gpus)  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match="needs cpus_per_trial above 0, given 0"):
        Experiment(task=ToyTask(), space=lambda *_: None, gpus_per_trial="auto", cpus_per_trial=0)  # type: ignore[arg-type]


_SHORT = """
import torch

class Task(ToyTask):
    def loss(self, outputs, targets):
        tries = HERE / f"{len(outputs)}"
        if len(outputs) in (17, 18) and (len(outputs) == 18 or not tries.exists()):
            with tries.open("a") as file: file.write(".")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(outputs, targets)
"""


def test_in_one_process_a_trial_short_of_memory_is_begun_again_once(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    start = [{"steps": 8, "batch": batch} for batch in (16, 17, 18)]
    settings = f"budget=Budget(trials=3), gpus_per_trial=0.5, start={start}"
    search, job = search_of(experiment_file(tmp_path, settings, task=_SHORT), toy_baseline, toy_data)
    ear = Ear(search)
    LocalDriver().run(search, job, ear)
    assert [result.status for result in search.results] == [Status.COMPLETE, Status.COMPLETE, Status.FAILED]
    said = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. (tried again alone on a GPU)"
    assert search.results[2].error == said
    assert [(tmp_path / name).read_text() for name in ("17", "18")] == [".", ".."]
    for number, steps in ear.steps.items():
        assert ear.heard.count(("started", number)) == 1
        assert steps == sorted(set(steps))


def test_who_is_given_no_gpu_leaves_it_to_others(
    toy_baseline: Baseline, toy_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray does not hide the GPUs of a machine from processes that have reserved none of them."""
    ours = lambda: str(sys._getframe(1).f_globals["__name__"]).startswith("autocompress.")  # noqa: E731  # torch is not fooled
    monkeypatch.setattr(torch.cuda, "is_available", ours)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert {gpus: gpu.device_for(gpus).type for gpus in (0, 0.0, 0.5, 1, 2, "auto")} == {
        0: "cpu",
        0.5: "cuda",
        1: "cuda",
        2: "cuda",
        "auto": "cuda",
    }
    options = (Option(what="weight_bits", name="head", value=4),)

    def given(gpus: float) -> tuple[Search, Job]:
        (tmp_path / str(gpus)).mkdir()
        settings = f"budget=Budget(trials=1), gpus_per_trial={gpus}, start=[{{'steps': 0}}]"
        return search_of(experiment_file(tmp_path / str(gpus), settings), replace(toy_baseline), toy_data)

    search, job = given(0)
    assert [option for option, _, _ in LocalDriver().divergences(options, job)] == [*options]
    LocalDriver().run(search, job, Ear(search))
    assert [(result.status, result.error) for result in search.results] == [(Status.COMPLETE, None)]
    if torch.version.cuda is None:  # the GPU that there is not is asked for
        with pytest.raises(TaskError, match="not compiled with CUDA"):
            list(LocalDriver().divergences(options, given(0.5)[1]))


# Trials note what of a GPU they were given and when they had it. After the first, `TOGETHER` of them wait for each other.
_SHARING = """
import tempfile

import ray, torch
from autocompress import gpu
from autocompress.option import Option
from autocompress.result import GpuMemory

TOGETHER, PEAK = {together}, {peak}
NOTES = Path({notes!r})

if ray.is_initialized():
    gpu.counted = lambda device: GpuMemory(peak=PEAK, outside=0, total=1000)
    SHARE = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    # They wait within a step: who waits to time a file elsewhere would let none of those that they wait for begin one.
    if ray.get_runtime_context().get_actor_id() is not None:
        tempfile.tempdir = str(NOTES)

class Task(ToyTask):
    def loss(self, outputs, targets):
        begin, until = time.time(), time.monotonic() + 90
        first = not list(NOTES.glob("*.first")) or (NOTES / f"{{os.getpid()}}.first").exists()
        (NOTES / f"{{os.getpid()}}.{{'first' if first else 'later'}}").touch()
        while not first and len(list(NOTES.glob("*.later"))) < TOGETHER:
            if time.monotonic() > until: raise ValueError("the others did not come")
            time.sleep(0.05)
        with (NOTES / f"{{os.getpid()}}.notes").open("a") as file:
            file.write(f"{{len(outputs)}} {{SHARE}} {{begin}} {{time.time()}}\\n")
        if len(outputs) == 18 or (len(outputs) == 17 and SHARE < 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(outputs, targets)
"""


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[Cluster]:
    """A node that says it has a GPU."""
    with simulated({"num_cpus": 5, "num_gpus": 1}) as cluster:
        yield cluster


@dataclass(frozen=True)
class Note:
    batch: int
    share: float
    begin: float
    end: float


def _noted(notes: Path) -> list[Note]:
    lines = [line.split() for file in notes.glob("*.notes") for line in file.read_text().splitlines()]
    return sorted((Note(int(batch), *map(float, rest)) for batch, *rest in lines), key=lambda note: note.begin)


@pytest.mark.ray
@pytest.mark.parametrize(("peak", "together", "share"), [(400, 2, 0.5), (200, 4, 0.25)])
def test_trials_share_a_gpu_and_one_that_lacks_memory_has_it_alone(
    one_gpu: Cluster, peak: int, together: int, share: float, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    batches = [16] * (1 + together) + [17, 18] * (together == 2)
    start = [{"steps": 8, "batch": batch, "bits": 2 + place} for place, batch in enumerate(batches)]
    task = _SHARING.format(together=together, peak=peak, notes=str(notes))
    settings = f"budget=Budget(trials={len(start)}), gpus_per_trial='auto', start={start}"
    search, job = search_of(experiment_file(home, settings, task=task), toy_baseline, toy_data)
    ear = Ear(search)
    TuneDriver(address=one_gpu.address).run(search, job, ear)
    noted = _noted(notes)
    assert {note.share for note in noted[:8]} == {1.0}, "the first has the GPU to itself"
    assert {note.share for note in noted if note.batch == 16} == {1.0, share}
    for moment in (note.begin for note in noted):
        assert sum(note.share for note in noted if note.begin <= moment <= note.end) <= 1.0
    told = {result.policy.finetune.batch_size: result for result in search.results}
    assert {batch: result.status for batch, result in told.items()} == {
        16: Status.COMPLETE,
        **({17: Status.COMPLETE, 18: Status.FAILED} if together == 2 else {}),
    }
    assert len(search.results) == len(start)
    assert all(ear.heard.count((what, number)) == 1 for number in ear.results for what in ("started", "finished"))
    if together == 2:
        assert [note.share for note in noted if note.batch == 18] == [share, 1.0]
        assert {note.share for note in noted if note.batch == 17} == {share, 1.0}
        assert (told[18].error or "").endswith("(tried again alone on a GPU)")


# A kernel of the trial with batch 17 went wrong: from then on CUDA would refuse all that the process asks for.
_BROKEN = """
from autocompress import gpu

BROKEN = []

def check(device):
    if BROKEN: raise RuntimeError("CUDA error: an illegal memory access was encountered")

gpu.check = check

class Task(ToyTask):
    def loss(self, outputs, targets):
        with (Path({notes!r}) / f"{{os.getpid()}}.process").open("a") as file: file.write(f"{{len(outputs)}} ")
        BROKEN.extend([1] * (len(outputs) == 17))
        check(None)
        return super().loss(outputs, targets)
"""


@pytest.mark.ray
def test_after_an_error_that_a_gpu_does_not_get_over_trials_go_to_another_process(
    one_gpu: Cluster, toy_baseline: Baseline, toy_data: Data, tmp_path: Path
) -> None:
    start = [{"steps": 8, "batch": batch} for batch in (17, 16, 18)]
    settings = f"budget=Budget(trials=3), gpus_per_trial=1, start={start}"
    file = experiment_file(tmp_path, settings, task=_BROKEN.format(notes=str(tmp_path)))
    search, job = search_of(file, toy_baseline, toy_data)
    TuneDriver(address=one_gpu.address).run(search, job, Ear(search))
    told = {result.policy.finetune.batch_size: result for result in search.results}
    assert {batch: result.status for batch, result in told.items()} == {
        **dict.fromkeys((16, 18), Status.COMPLETE),
        17: Status.FAILED,
    }, [result.error for result in search.results]
    processes = [{*file.read_text().split()} for file in tmp_path.glob("*.process")]
    assert {"17"} in processes, "nothing was tried there afterwards"
    assert set().union(*processes) == {"16", "17", "18"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_real_gpu_memory_is_counted_and_capped() -> None:
    device = gpu.device_for(1)
    gpu.check(device)
    gpu.begin_count(device)
    kept = torch.empty(64 * 2**20, dtype=torch.uint8, device=device)
    took = gpu.counted(device)
    assert took is not None
    assert kept.numel() <= took.peak < took.total
    assert took.outside > 0
    try:
        gpu.cap(device, 0.01)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(took.total // 20, dtype=torch.uint8, device="cuda")
    finally:
        gpu.cap(device, 1.0)
    del kept
    gpu.begin_count(device)
    again = gpu.counted(device)
    assert again is not None
    assert again.peak < took.peak


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_real_gpu_trials_share_by_what_the_first_took(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=3), gpus_per_trial='auto'"), toy_baseline, toy_data)
    TuneDriver().run(search, job, Ear(search))
    assert [result.status for result in search.results] == [Status.COMPLETE] * 3
    assert all(result.gpu is not None and result.gpu.peak > 0 for result in search.results)
