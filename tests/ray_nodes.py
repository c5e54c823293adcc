"""Ray nodes as `ray start` starts them, on this machine, which a test may kill."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

# No usage statistics, no token in the home folder, nothing of one machine's address.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
_PATIENCE = 120.0


@contextmanager
def simulated(head: dict[str, Any], *others: dict[str, Any]) -> Iterator[Cluster]:
    """Nodes that Ray starts for tests, with the resources named: they end together, none is killed as a machine is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"):
            patch.setenv(name, ENVIRONMENT[name])
        cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
        for node in others:
            cluster.add_node(**node)
        yield cluster
        cluster.shutdown()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Node:
    """A `ray start --block` that runs, and all that it has started."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """As when the machine is gone: nobody says good-bye. Returns when all of it is dead."""
        if self.process.poll() is not None:
            return
        whole = psutil.Process(self.process.pid)
        processes = [whole, *whole.children(recursive=True)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=_PATIENCE)
        self.process.wait()


@contextmanager
def ray_node(arguments: Sequence[str], folder: Path, name: str) -> Iterator[Node]:
    """`ray start ARGUMENTS`, when it is up; it is killed at the end, unless it was before.

    Its workers have its `name` in the environment, as NODE.
    """
    command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block"]
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        environment = {**os.environ, **ENVIRONMENT, "NODE": name}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True)
    node = Node(process, log)
    try:
        deadline = time.monotonic() + _PATIENCE
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"the node does not come up: {log.read_text()[-2000:]}"
            time.sleep(0.1)
        yield node
    finally:
        node.kill()
