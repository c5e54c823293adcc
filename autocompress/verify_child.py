"""Runs an exported file where nothing but onnxruntime and numpy is loaded: started by `verify` as a script.

``python -I verify_child.py score FOLDER`` reads job.json and inputs.npy there and writes outputs.npy;
``python -I verify_child.py time FOLDER`` times the file against the uncompressed model. Both write child.json.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# Interleaved runs and least times, as in a trial, and as many sessions as a trial that waits for a better moment.
_SESSIONS, _FEWEST_SESSIONS = 60, 3
_SECONDS = 2.0
_PAIRS = 24
_SCORE_BATCH = 256
_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


def main(what: str, folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    found = score(job, folder) if what == "score" else least_times(job)
    found["onnxruntime"] = onnxruntime.__version__
    found["loaded"] = [name for name in ("autocompress", "torch", "onnx") if name in sys.modules]
    (folder / "child.json").write_text(json.dumps(found))


def score(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    session = load(job["model"], job)
    inputs = np.load(folder / "inputs.npy", mmap_mode="r")
    name = session.get_inputs()[0].name
    batches = (np.ascontiguousarray(inputs[at : at + _SCORE_BATCH]) for at in range(0, len(inputs), _SCORE_BATCH))
    np.save(folder / "outputs.npy", np.concatenate([session.run(None, {name: batch})[0] for batch in batches]))
    return {}


def least_times(job: dict[str, Any]) -> dict[str, Any]:
    """Least milliseconds of either file, and their ratio."""
    rounds: list[list[float]] = []
    deadline = time.monotonic() + _SECONDS
    while len(rounds) < _SESSIONS and (len(rounds) < _FEWEST_SESSIONS or time.monotonic() < deadline):
        sessions = [load(job["model"], job), load(job["baseline"], job)]
        shape = (job["batch_size"], *sessions[0].get_inputs()[0].shape[1:])
        example = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        least = [float("inf"), float("inf")]
        for turn in range(_PAIRS + 3):
            for index, session in enumerate(sessions):
                start = time.perf_counter()
                session.run(None, {session.get_inputs()[0].name: example})
                spent = time.perf_counter() - start
                if turn >= 3:  # the first runs warm up
                    least[index] = min(least[index], spent * 1e3)
        rounds.append(least)
    ours, theirs = (min(times) for times in zip(*rounds, strict=True))
    return {"latency_ms": ours, "baseline_latency_ms": theirs, "latency_ratio": ours / theirs}


def load(file: str, job: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=_PROVIDERS[job["device"]])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
