"""Starts Ray on this machine, or joins a cluster that runs, and keeps what Ray has to say off the terminal."""

import gc
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

import ray
from ray._private import ray_constants
from ray.exceptions import RayError

from autocompress.credentials import CleanFormatter
from autocompress.drivers.lost import watched
from autocompress.errors import ExperimentError, UnreachableError
from autocompress.folder import RunFolder
from autocompress.target import Target

_REACH_SECONDS = 10.0
# `ray status`, which says when it has loaded.
_STATUS = "from ray.scripts import scripts; print('asking', flush=True); scripts.main()"
LANE = "latency_lane"
# Of the workers: the folder here of which each has a copy.
_COPIED = "AUTOCOMPRESS_COPIED_FOLDER"

# Ray and Tune read these when they start; what the user has set stays.
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Nobody resumes from Tune's snapshots, and each rewrites the whole history.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # Relative paths in an experiment mean the same in a worker as here.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_LOCAL_SETTINGS = {
    # It listens to this machine alone; with tokens Ray would want to write to the home folder.
    "RAY_AUTH_MODE": "disabled",
    # Ray would give every process low priority, the latency lane too; trainers take it themselves.
    "RAY_worker_niceness": "0",
}


@contextmanager
def ray_cluster(address: str | None, *, threads: int, experiment_file: Path, run: RunFolder) -> Iterator[Path]:
    """Ray for as long as the context lasts: started on this machine, or the cluster that runs at `address`.

    A Ray that this process already uses is used and left running. To a cluster the folder of the experiment is sent,
    but for the `run` folder if that lies within. Gives the path of the experiment as workers see it. Raises
    `UnreachableError` within some ten seconds. When Ray is lost meanwhile this process ends: see `watched`.
    """
    settings = _SETTINGS if address else {**_SETTINGS, **_LOCAL_SETTINGS}
    with _environment(settings), _logged_to(run.log):
        if ray.is_initialized():
            yield _as_workers_see(experiment_file)
            return
        variables = {"OMP_NUM_THREADS": str(threads)}
        try:
            with _sigterm_kept():
                if address is None:
                    _start({"env_vars": variables})
                else:
                    folder = str(experiment_file.parent)
                    excludes = _excludes(experiment_file, run.path)
                    _join(address, {"env_vars": {**variables, _COPIED: folder}, "working_dir": folder, "excludes": excludes})
            with watched(lambda reason: _gone(address, run, reason)):
                yield _as_workers_see(experiment_file)
        finally:
            with _garbage_kept(), redirect_stdout(io.StringIO()):  # it would repeat what it has said before
                ray.shutdown()


def _gone(address: str | None, run: RunFolder, reason: str) -> str:
    """What is said when Ray is lost."""
    if address is None:
        return f"Ray on this machine has died ({reason}); what has finished is kept: `autocompress resume {run.path}` goes on"
    return (
        f"the Ray cluster at {address} is gone ({reason}); what has finished is kept: when a cluster is there again, "
        f"`autocompress resume {run.path} --address {address}` goes on"
    )


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of whatever handles SIGTERM, and leaves it there."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collects no garbage meanwhile.

    If another thread did, and a reference to one of Ray's objects were in it, Ray would end the process: its worker is gone
    some milliseconds before it is known to be.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def room(cpus: float, gpus: float, *, remedy: str) -> int:
    """How many trials of this size fit on the nodes at once. Raises `ExperimentError` with the `remedy` when none does."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fit = sum(_fit(node, cpus, gpus) for node in nodes)
    if fit == 0:
        most_cpus, most_gpus = max((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        raise ExperimentError(
            f"no node has room for a trial of {cpus:g} CPUs and {gpus:g} GPUs, the largest has {most_cpus:g} and "
            f"{most_gpus:g}; {remedy}"
        )
    return fit


def nodes_for(cpus: float) -> dict[str, str]:
    """The nodes that have CPUs for a trial: their addresses, by their ids."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in alive if _fit(node["Resources"], cpus, 0) or not cpus}


def has_gpus() -> bool:
    """True when a node has a GPU."""
    return "GPU" in ray.cluster_resources()  # type: ignore[no-untyped-call]


def lane_resources(target: Target) -> dict[str, float]:
    """Where files of a target are timed: on a node that declares it (`has_device`), on one that declares `latency_lane`,
    else on the head node.

    A small share, because it only says where: searches that use the cluster at the same time queue at the lane's lock.
    """
    declared = ray.cluster_resources()  # type: ignore[no-untyped-call]
    where = next((name for name in (_device(target), LANE) if name in declared), "node:__internal_head__")
    return {where: 0.001}


def has_device(target: Target) -> bool:
    """True when a node declares the resource ``target:RUNTIME-DEVICE``: files of the target run there and nowhere else."""
    return _device(target) in ray.cluster_resources()  # type: ignore[no-untyped-call]


def _device(target: Target) -> str:
    return f"target:{target.place}"


def _as_workers_see(file: Path) -> Path:
    """The path in a worker, whose current folder is its copy of the folder that was sent, if one was."""
    copied = ray.get_runtime_context().runtime_env.get("env_vars", {}).get(_COPIED)
    return Path(file.name) if copied == str(file.parent) else file


def _start(environment: dict[str, Any]) -> None:
    with _loopback():
        ray.init(
            address="local",  # by default Ray would join any cluster that runs on this machine
            resources={LANE: 1},
            include_dashboard=False,
            log_to_driver=False,
            runtime_env=environment,
        )


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray that starts meanwhile listens to this machine alone: 127.0.0.1, as it does by itself on macOS and Windows.

    On Linux it would listen on every interface, and run what anyone sends. It has no option for that: it takes a
    `_node_ip_address` of 127.0.0.1 for the machine's address in its network.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _join(address: str, environment: dict[str, Any]) -> None:
    check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, runtime_env=environment)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise UnreachableError(f"cannot join the Ray cluster at {address}: {_last_line(str(error))}") from error


def check_answers(address: str) -> None:
    """Raises `UnreachableError`, within ten seconds after Ray's command has loaded, unless a Ray cluster runs at `address`."""
    if address.startswith("ray://"):
        raise UnreachableError(
            f"{address} is a Ray Client address; run autocompress on the cluster instead "
            "(`ray exec` or `ray job submit`) with --address auto"
        )
    problem = _silence(address)
    if problem:
        raise UnreachableError(
            f"no Ray cluster at {address} ({problem}); start one with `ray start --head`, or leave --address out "
            "to use this machine alone"
        )


def _silence(address: str) -> str:
    """Why the cluster cannot be reached; empty when it can."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
        except OSError as error:
            return str(error)
    # In a child process: Ray itself tries for most of a minute, and cannot be stopped from within.
    command = [sys.executable, "-c", _STATUS, "status", "--address", address]
    # Unlike ray.init it does not look for the token by itself.
    token = {"RAY_AUTH_MODE": "token"} if (Path.home() / ".ray" / "auth_token").exists() else {}
    environment = {**token, **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()  # on a machine that is busy Ray's command takes longer to load than to answer
        try:
            _, told = asking.communicate(timeout=_REACH_SECONDS)
        except subprocess.TimeoutExpired:
            asking.kill()
            return f"no answer within {_REACH_SECONDS:.0f} s"
    return _last_line(told) if asking.returncode else ""


def _excludes(experiment_file: Path, run: Path) -> list[str]:
    """What of the experiment's folder stays here, as in a .gitignore file."""
    folder = experiment_file.parent
    if folder == run:  # the run folder keeps a copy of the experiment, for when the original is gone
        return [f"/{path.name}" for path in run.iterdir() if path.name != experiment_file.name]
    return [f"/{run.relative_to(folder)}/"] if run.is_relative_to(folder) else []


def _fit(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need > 0}
    # 0.3 / 0.1 is a little less than 3 in floating point.
    return min((int(node.get(name, 0) / need + 1e-6) for name, need in needs.items()), default=0)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: value for name, value in settings.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():  # Ray adds some of its own
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    logger = logging.getLogger("ray")
    file = logging.FileHandler(path)
    file.setFormatter(CleanFormatter())
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = [file]
    try:
        with redirect_stdout(cast(TextIO, _WithoutRay(sys.stdout, logger))):
            yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        file.close()


class _WithoutRay:
    """Standard output, except that what Ray prints from a thread of its own (lost workers and nodes) goes to the log."""

    def __init__(self, stream: TextIO, logger: logging.Logger) -> None:
        self._stream = stream
        self._logger = logger

    def write(self, text: str) -> int:
        if threading.current_thread().name != "ray_listen_error_messages":
            return self._stream.write(text)
        if text.strip():
            self._logger.warning(text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
