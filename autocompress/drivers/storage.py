"""Looks whether the machines of a cluster reach the storage in which they are to keep the files of trials."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.artifacts import InStorage, check
from autocompress.drivers.timing import reason
from autocompress.errors import AutocompressError, UnreachableError

# Many machines start a process each; a storage that does not answer is tried for seconds.
_SECONDS = 120.0


def check_reached(artifacts: InStorage, *, by: Mapping[str, str]) -> None:
    """Raises `UnreachableError` that names the first of these nodes (address by id) that does not reach the storage."""
    asked = {}
    for node in by:
        there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        asked[node] = ray.remote(check).options(num_cpus=0, max_retries=1, scheduling_strategy=there).remote(artifacts)
    for node, answer in asked.items():
        problem = _problem(answer)
        if problem:
            raise UnreachableError(f"the machine {by[node]}: {problem}")


def _problem(answer: Any) -> str:
    try:
        ray.get(answer, timeout=_SECONDS)
    except GetTimeoutError:
        return f"no answer within {_SECONDS:.0f} s whether it reaches the storage of the trials' files"
    except RayTaskError as error:
        return str(error.cause) if isinstance(error.cause, AutocompressError) else reason(error)
    except RayError as error:
        return reason(error)
    return ""
