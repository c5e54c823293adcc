"""Who can talk to a search: nobody from another machine."""

import multiprocessing
import sys
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from autocompress.drivers.cluster import ray_cluster
from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.listeners import Silent
from autocompress.result import TrialResult
from autocompress.run import run_search
from tests.toy import write_experiment


def listening(process: psutil.Process) -> set[tuple[str, str]]:
    """The name of each process that listens, of this one and all it has started, and the address it listens on."""
    found = set()
    for one in (process, *process.children(recursive=True)):
        try:
            found |= {(one.name(), one_end.laddr.ip) for one_end in one.net_connections("inet") if one_end.status == "LISTEN"}
        except psutil.NoSuchProcess:
            continue
    return found


def outside(sockets: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(name, ip) for name, ip in sockets if not is_loopback(ip)}


def is_loopback(ip: str) -> bool:
    address = ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


class Looking(Silent):
    """Notes who listens whenever a trial has finished."""

    def __init__(self) -> None:
        self.seen: list[set[tuple[str, str]]] = []

    def finished(self, result: TrialResult) -> None:
        self.seen.append(listening(psutil.Process()))


def _search_and_look(folder: Path, uri: str, found: Any) -> None:
    view = Looking()
    run_search(write_experiment(folder, trials=2), folder / "run", driver=LocalDriver(), tracking_uri=uri, view=view)
    found.put(view.seen)


def test_a_search_in_one_process_listens_to_nobody(tmp_path: Path, tracking_uri: str) -> None:
    # In a process of its own: other tests leave servers behind in this one.
    fresh = multiprocessing.get_context("spawn")
    found = fresh.Queue()
    process = fresh.Process(target=_search_and_look, args=(tmp_path, tracking_uri, found))
    process.start()
    assert found.get(timeout=200) == [set(), set()]
    process.join()


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray does so by itself")
def test_ray_listens_to_this_machine_alone(tmp_path: Path) -> None:
    @ray.remote
    def work() -> int:
        return 1

    before = outside(listening(psutil.Process()))
    with ray_cluster(None, threads=1, experiment_file=tmp_path / "experiment.py", run=RunFolder(tmp_path)):
        assert ray.get(work.remote()) == 1
        sockets = listening(psutil.Process())
        assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
        assert outside(sockets) - before == set()
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"  # type: ignore[no-untyped-call]
