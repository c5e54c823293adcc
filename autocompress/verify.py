"""Is an exported model what it claims to be? Measured anew, in a process that has no autocompress."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autocompress import nested
from autocompress.baseline import load_split
from autocompress.errors import ExportError, InputError, TaskError
from autocompress.front import TestScore
from autocompress.lane import Lane
from autocompress.measure import checked_score, download_bytes
from autocompress.nested import Nested
from autocompress.noun import Noun
from autocompress.objective import USUAL, Scoring
from autocompress.opened import open_run
from autocompress.result import Environment
from autocompress.runtimes import Runtime, file_name, runtime_of
from autocompress.runtimes.machine import environment
from autocompress.runtimes.onnxruntime import PROVIDERS
from autocompress.runtimes.openvino import SETTINGS
from autocompress.runtimes.slot import INPUT, OUTPUT
from autocompress.target import Target
from autocompress.task import Task
from autocompress.trial_files import sha256_of

POLICY, CLAIMS, README = "policy.json", "verify.json", "README.md"

# Latency is told as a ratio to the uncompressed model. Up to 25 % off is noise, up to twice as slow another machine.
_LATENCY_NOISE = 0.25
_LATENCY_FACTOR = 2.0
# The same kernels give the same bits; those of another CPU or another version round differently. In points, or per cent.
_SAME_SCORE = 1e-7
_OTHER_SCORE = 0.5
_DOWNLOAD_SHARE = 0.01

_CHILD = Path(__file__).with_name("verify_child.py")

Holds = Literal["yes", "roughly", "no"]


class Claims(Noun):
    """`verify.json` of an exported model: what was measured on the file, and where.

    `accuracy` is the score on the test split, `scoring` what is known of it. `latency_ratio` is to the uncompressed model in
    the same session. `run` is the path of the run folder, `environment` the machine that measured.
    """

    version: Literal[1] = 1
    trial: int
    run: str
    sha256: str
    size_bytes: int
    download_bytes: int
    scoring: Scoring = USUAL
    accuracy: TestScore
    validation_accuracy: float
    latency_ms: float
    latency_ratio: float
    baseline_size_bytes: int
    baseline_latency_ms: float
    baseline_accuracy: TestScore | None
    target: Target
    environment: Environment | None


@dataclass(frozen=True)
class Checked:
    """One claim: what was claimed, what was measured, and whether it holds ("roughly": off, but not by much)."""

    claim: str
    claimed: str
    measured: str
    holds: Holds


def verify(folder: Path, *, run: Path | None = None) -> list[Checked]:
    """Measures the exported model in `folder` anew and compares it with its claims.

    The data and the uncompressed model come from the run folder that it was exported from, `run` if that was moved.
    Raises `InputError` when something that is needed is missing.
    """
    claims = read_claims(folder)
    opened = open_run(run or claims.run)
    experiment = opened.experiment()
    runtime = runtime_of(claims.target)
    if runtime.package is None:
        raise InputError(f"verify cannot run files of the runtime {claims.target.runtime!r} in a process without autocompress")
    file, baseline = folder / runtime.file, opened.folder.baseline / file_name(experiment.target, claims.target)
    if not file.is_file():
        raise InputError(f"{folder} has no {runtime.file}; export it again by `autocompress export {claims.run} -o {folder}`")
    if not baseline.is_file():
        raise InputError(f"{opened.folder.path} is damaged: it has no baseline/{baseline.name}; start a new run")
    opened.baseline()  # a file that has changed since would make another ratio
    inputs, targets = load_split(experiment.task, "test")
    content, alone = file.read_bytes(), f"runs on {runtime.package} alone"
    look_into(file, content, runtime)
    look_into(baseline, baseline.read_bytes(), runtime)
    checked = [
        _exact("sha256", claims.sha256[:12], sha256_of(content)[:12]),
        _exact("size, bytes", f"{claims.size_bytes:,}", f"{len(content):,}"),
        _near("download (zstd), bytes", claims.download_bytes, download_bytes(content)),
    ]
    with tempfile.TemporaryDirectory(prefix="autocompress-verify-") as scratch:
        work = Path(scratch)
        job = {
            "model": str(file.resolve()),
            "baseline": str(baseline),
            "batch_size": claims.target.batch_size,
            "threads": claims.target.threads,
            "providers": PROVIDERS[claims.target.device],
            "device": claims.target.device,
            "inputs": list(nested.named(inputs, INPUT)),
            "by_name": isinstance(inputs, dict),
            "package": runtime.package,
            "compiled": claims.target.runtime == "torch-compiled",
            "settings": SETTINGS,
        }
        (work / "job.json").write_text(json.dumps(job))
        np.savez(work / "inputs.npz", *nested.arrays(inputs))
        try:
            scored = _child("score", work)
            with np.load(work / "outputs.npz") as stored:
                outputs = nested.restored(dict(zip(scored["outputs"], stored.values(), strict=True)), OUTPUT)
            accuracy = _score(experiment.task, outputs, targets)
            # While something is timed, nothing trains on this machine.
            with Lane().exclusive():
                timed = _child("time", work)
        except _ChildError as error:
            return [*checked, Checked(alone, "yes", str(error), "no")]
    loaded = [*scored["loaded"], *timed["loaded"]]
    return [
        *checked,
        Checked(alone, "yes", f"loaded {', '.join(loaded)}" if loaded else "yes", "no" if loaded else "yes"),
        _accuracy(claims, accuracy, nested.count(targets), {runtime.package: scored["version"]}),
        _latency(claims, timed),
    ]


def look_into(file: Path | str, content: bytes, runtime: Runtime) -> None:
    """Raises `InputError` for a file that would read others or run code of its own. Who runs it without us does not look."""
    try:
        if runtime.check is not None:
            runtime.check(content)
    except ExportError as error:
        raise InputError(f"{file} is refused: {error}") from error


def can_verify(target: Target) -> bool:
    """True where files run in a process that has no autocompress."""
    return runtime_of(target).package is not None


def read_claims(folder: Path) -> Claims:
    """Raises `InputError` when the folder holds no exported model, or a damaged one."""
    file = folder / CLAIMS
    if not file.is_file():
        raise InputError(f"{folder} is no exported model: it has no {CLAIMS}; `autocompress export RUN -o DIR` makes one")
    return Claims.from_json(file.read_bytes(), source=str(file))


class _ChildError(Exception):
    """The fresh process did not get through; the text is its last word."""


def _child(what: str, work: Path) -> dict[str, Any]:
    command = [sys.executable, "-I", str(_CHILD), what, str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise _ChildError(lines[-1] if lines else f"ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads((work / "child.json").read_text())
    return found


def _score(task: Task, outputs: Nested, targets: Nested) -> float:
    try:
        return checked_score(task, outputs, targets)
    except Exception as error:
        raise TaskError(f"the task's score() failed: {type(error).__name__}: {error}") from error


def _exact(claim: str, claimed: str, measured: str) -> Checked:
    return Checked(claim, claimed, measured, "yes" if claimed == measured else "no")


def _near(claim: str, claimed: int, measured: int) -> Checked:
    close = abs(measured - claimed) <= _DOWNLOAD_SHARE * claimed
    return Checked(claim, f"{claimed:,}", f"{measured:,}", "yes" if close else "no")


def _accuracy(claims: Claims, measured: float, examples: int, version: dict[str, str]) -> Checked:
    claimed, where = claims.accuracy.accuracy, claims.environment
    same = where is not None and where.cpu == environment().cpu and version.items() <= where.versions.items()
    gap = abs(claims.scoring.gain(measured, claimed)) / (claims.scoring.one_percent(claimed) or 1.0)
    holds: Holds = "yes" if gap <= _SAME_SCORE else "roughly" if not same and gap <= _OTHER_SCORE else "no"
    return Checked(f"{claims.scoring.name}, {examples:,} test examples", f"{claimed:.6f}", f"{measured:.6f}", holds)


def _latency(claims: Claims, timed: dict[str, Any]) -> Checked:
    claimed, measured = claims.latency_ratio, float(timed["latency_ratio"])
    holds: Holds = "no" if measured > _LATENCY_FACTOR * claimed else "roughly"
    if abs(measured - claimed) <= _LATENCY_NOISE * claimed:
        holds = "yes"
    return Checked(
        "latency / uncompressed",
        f"{claimed:.3f} ({claims.latency_ms:.3g} ms)",
        f"{measured:.3f} ({timed['latency_ms']:.3g} ms)",
        holds,
    )
