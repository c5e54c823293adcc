"""One Ray for all that a run does."""

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
