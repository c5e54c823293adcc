"""What came out of a trial."""

from enum import StrEnum

from pydantic import field_validator

from autocompress.noun import Noun
from autocompress.policy import Policy


class Status(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"  # went all the way: its metrics are measured on the exported file
    STOPPED = "stopped"  # ended early on purpose: what it had reached is no result
    FAILED = "failed"  # could not go on: `error` says why


class Rung(Noun):
    """How far a trial is after `step` fine-tuning steps.

    `accuracy` is the score on the validation split, of the student in torch or, where `metrics` are known before any training,
    at step 0 of its file. `metrics` holds what does not depend on training
    and was measured on the file exported at the first rung (`size_bytes`, `latency_ms`, ...), `seconds` how many
    worker-seconds the trial took so far.
    """

    step: int
    accuracy: float
    metrics: dict[str, float] = {}
    seconds: float = 0.0


class Environment(Noun):
    """Where a trial was measured."""

    cpu: str
    cores: int
    gpu: str | None = None
    python: str
    versions: dict[str, str]


class GpuMemory(Noun):
    """What a trial took of its GPU, in bytes.

    `peak` is the most that torch held for tensors at once, `outside` what was in use beside: the libraries of CUDA, and
    whoever else was on the GPU. `total` is all that the GPU has.
    """

    peak: int
    outside: int
    total: int


class TrialResult(Noun):
    """Everything known about one finished trial; one line of `trials.jsonl`.

    `metrics` are measured on the exported file (validation split): `size_bytes`, `download_bytes`, `latency_ms`,
    `latency_ratio`, `latency_measured_ms`, `accuracy`, `macs`, `params`. `latency_ratio` is the time of the file over that
    of the uncompressed model in the same interleaved sessions; `latency_ms` is this ratio times the uncompressed model's
    time at the start of the run, so that trials timed hours apart compare; `latency_measured_ms` is the least time itself.
    Empty unless the trial is complete. `seconds` says how long each stage took, `model` is the path of the exported file
    inside the run folder, `sha256` holds the sums of all its files by name (empty in older records), `summary` the policy in
    a few words. `refit_of` is the number of the trial whose student this one has trained further. `gpu` is None where there
    was none; with `out_of_memory` the trial has FAILED because the GPU had too little.
    """

    version: int = 1
    number: int
    policy: Policy
    status: Status
    metrics: dict[str, float] = {}
    rungs: tuple[Rung, ...] = ()
    error: str | None = None
    seed: int
    started: float
    seconds: dict[str, float] = {}
    environment: Environment | None = None
    model: str | None = None
    sha256: dict[str, str] = {}
    summary: str = ""
    refit_of: int | None = None
    gpu: GpuMemory | None = None
    out_of_memory: bool = False

    @field_validator("model")
    @classmethod
    def _inside(cls, model: str | None) -> str | None:
        if model is not None and (not model or model.startswith("/") or ".." in model.split("/")):
            raise ValueError("it leads out of the run folder")
        return model

    @property
    def compute(self) -> float:
        """The worker-seconds that the trial took."""
        return sum(self.seconds.values()) or (self.rungs[-1].seconds if self.rungs else 0.0)
