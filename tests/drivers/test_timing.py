"""The latency lane: whoever queues there is served, and a file that hangs holds nobody up for ever."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from autocompress.drivers.timing import Actor, LatencyLane, _InLane
from autocompress.errors import TrialError
from autocompress.measure import Here, Latency
from autocompress.target import Target

_LIMIT = 4.0


@pytest.mark.ray
@pytest.mark.usefixtures("running_ray")
def test_a_queue_may_take_longer_than_any_call_of_it() -> None:
    class Sleepy:
        def time(self, model: bytes, baseline: bytes) -> Latency:
            time.sleep(float(model))
            return Latency(latency_ms=float(model), baseline_latency_ms=1.0)

    class SleepyLane(LatencyLane):
        def __init__(self, target: str) -> None:
            super().__init__(target, "", _LIMIT)
            self._here = Sleepy()  # type: ignore[assignment]

    handle: Any = ray.remote(SleepyLane).options(num_cpus=0, max_restarts=-1, max_task_retries=1).remote(Target().to_json())
    lane = _InLane(Actor(handle, has_device=False), Here(Target()), None)
    began = time.monotonic()
    with ThreadPoolExecutor(6) as trials:
        queued = list(trials.map(lambda _: lane.time(b"1", b""), range(6)))
    assert [latency.latency_ms for latency in queued] == [1.0] * 6
    assert time.monotonic() - began > _LIMIT, "the last had to wait for longer than a call may take"
    with pytest.raises(TrialError, match="the latency lane failed: worker died"):
        lane.time(b"600", b"")
    assert lane.time(b"0", b"").latency_ms == 0, "the next one is served"
    ray.kill(handle)
