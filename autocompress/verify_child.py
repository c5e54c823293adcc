"""Runs an exported file where nothing but onnxruntime and numpy is loaded: started by `verify` as a script.

``python -I verify_child.py score FOLDER`` reads job.json and inputs.npz there and writes outputs.npz;
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
    wanted = [slot.name for slot in session.get_inputs()]
    with np.load(folder / "inputs.npz") as stored:
        given = dict(zip(job["inputs"], stored.values(), strict=True))
    inputs = given if given.keys() == set(wanted) else dict(zip(wanted, given.values(), strict=True))
    examples = len(next(iter(inputs.values())))
    batches = [
        session.run(None, {name: array[at : at + _SCORE_BATCH] for name, array in inputs.items()})
        for at in range(0, examples, _SCORE_BATCH)
    ]
    np.savez(folder / "outputs.npz", *(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    return {"outputs": [output.name for output in session.get_outputs()]}


def least_times(job: dict[str, Any]) -> dict[str, Any]:
    """Least milliseconds of either file, and their ratio."""
    rounds: list[list[float]] = []
    deadline = time.monotonic() + _SECONDS
    while len(rounds) < _SESSIONS and (len(rounds) < _FEWEST_SESSIONS or time.monotonic() < deadline):
        sessions = [load(job["model"], job), load(job["baseline"], job)]
        example = {slot.name: made_up(slot, job["batch_size"]) for slot in sessions[0].get_inputs()}
        least = [float("inf"), float("inf")]
        for turn in range(_PAIRS + 3):
            for index, session in enumerate(sessions):
                start = time.perf_counter()
                session.run(None, example)
                spent = time.perf_counter() - start
                if turn >= 3:  # the first runs warm up
                    least[index] = min(least[index], spent * 1e3)
        rounds.append(least)
    ours, theirs = (min(times) for times in zip(*rounds, strict=True))
    return {"latency_ms": ours, "baseline_latency_ms": theirs, "latency_ratio": ours / theirs}


def made_up(slot: Any, examples: int) -> Any:
    """Noise where the file wants floats, ones elsewhere."""
    shape, kind = (examples, *slot.shape[1:]), slot.type.removeprefix("tensor(").removesuffix(")")
    if kind in ("float", "double", "float16"):
        draw = np.random.default_rng(0)
        return draw.standard_normal(shape).astype({"float": "float32", "double": "float64"}.get(kind, kind))
    return np.ones(shape, kind)


def load(file: str, job: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=_PROVIDERS[job["device"]])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
