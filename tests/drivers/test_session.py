"""One Ray for all that a run does, and its end."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from autocompress.baseline import Baseline, Data
from autocompress.drivers.tune import TuneDriver
from autocompress.option import options
from autocompress.result import Status
from tests.drivers.searching import Ear, experiment_file, search_of


@pytest.mark.ray
def test_a_session_starts_ray_once(toy_baseline: Baseline, toy_data: Data, tmp_path: Path) -> None:
    search, job = search_of(experiment_file(tmp_path, "budget=Budget(trials=1)"), toy_baseline, toy_data)
    driver = TuneDriver(concurrency=1)
    assert not ray.is_initialized()
    with driver.session(job):
        begun = ray.get_runtime_context().get_job_id()
        list(driver.divergences(options(toy_baseline.layers, toy_baseline.target.menu)[:1], job))
        assert ray.get_runtime_context().get_job_id() == begun
        driver.run(search, job, Ear(search))
        assert ray.get_runtime_context().get_job_id() == begun
    assert not ray.is_initialized()
    assert [result.status for result in search.results] == [Status.COMPLETE]


# References in cycles, which only the garbage collector frees, in a thread that goes on while Ray shuts down.
_RUBBISH = """
import gc, sys, threading, time
from pathlib import Path
import ray
from autocompress.drivers.cluster import ray_cluster
from autocompress.folder import RunFolder

references = []

def leave_rubbish():
    while references:
        box = [references.pop()]
        box.append(box)
        del box
        time.sleep(0)

folder = RunFolder(sys.argv[1])
with ray_cluster(None, threads=1, experiment_file=folder.experiment, run=folder):
    references += [ray.put(None) for _ in range(20_000)]
    gc.collect()
    gc.set_threshold(20)
    threading.Thread(target=leave_rubbish, daemon=True).start()
assert gc.isenabled()
print("came to the end")
"""


@pytest.mark.ray
def test_garbage_of_other_threads_does_not_end_the_process_when_ray_shuts_down(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", _RUBBISH, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "came to the end\n"), ended.stderr
