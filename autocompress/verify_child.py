"""Runs an exported file where nothing but its runtime and numpy is loaded: started by `verify` as a script.

``python -I verify_child.py score FOLDER`` reads job.json and inputs.npz there and writes outputs.npz;
``python -I verify_child.py time FOLDER`` times the file against the uncompressed model. Both write child.json.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# Interleaved runs and least times, as in a trial, and as many sessions as a trial that waits for a better moment.
_SESSIONS, _FEWEST_SESSIONS = 60, 3
_SECONDS = 2.0
_PAIRS = 24
_SCORE_BATCH = 256

# Inputs by name in, outputs by name out.
Arrays = dict[str, Any]
Session = Callable[[Arrays], Arrays]


def main(what: str, folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "inputs.npz") as stored:
        inputs = dict(zip(job["inputs"], stored.values(), strict=True))
    found = score(job, inputs, folder) if what == "score" else least_times(job, inputs)
    found["version"] = version(job["package"])
    found["loaded"] = [name for name in ("autocompress", "torch", "onnx") if name in sys.modules and name != job["package"]]
    (folder / "child.json").write_text(json.dumps(found))


def score(job: dict[str, Any], inputs: Arrays, folder: Path) -> dict[str, Any]:
    session = load(job["model"], job)
    examples = len(next(iter(inputs.values())))
    batches = [
        session({name: array[at : at + _SCORE_BATCH] for name, array in inputs.items()})
        for at in range(0, examples, _SCORE_BATCH)
    ]
    np.savez(folder / "outputs.npz", *(np.concatenate([batch[name] for batch in batches]) for name in batches[0]))
    return {"outputs": list(batches[0])}


def least_times(job: dict[str, Any], inputs: Arrays) -> dict[str, Any]:
    """Least milliseconds of either file, and their ratio."""
    size = job["batch_size"]
    example = {name: np.resize(array[:size], (size, *array.shape[1:])) for name, array in inputs.items()}
    rounds: list[list[float]] = []
    deadline = time.monotonic() + _SECONDS
    while len(rounds) < _SESSIONS and (len(rounds) < _FEWEST_SESSIONS or time.monotonic() < deadline):
        sessions = [load(job["model"], job), load(job["baseline"], job)]
        least = [float("inf"), float("inf")]
        for turn in range(_PAIRS + 3):
            for index, session in enumerate(sessions):
                start = time.perf_counter()
                session(example)
                spent = time.perf_counter() - start
                if turn >= 3:  # the first runs warm up
                    least[index] = min(least[index], spent * 1e3)
        rounds.append(least)
    ours, theirs = (min(times) for times in zip(*rounds, strict=True))
    return {"latency_ms": ours, "baseline_latency_ms": theirs, "latency_ratio": ours / theirs}


def load(file: str, job: dict[str, Any]) -> Session:
    match job["package"]:
        case "openvino":
            return _openvino(file, job)
        case "torch":
            return _torch(file, job)
    return _onnxruntime(file, job)


def _onnxruntime(file: str, job: dict[str, Any]) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [(name, settings) for name, settings in job["providers"]]
    session = onnxruntime.InferenceSession(file, options, providers=providers)
    (provider, _), there = providers[0], session.get_providers()
    if provider not in there:  # it has only warned
        sys.exit(f"ONNX Runtime has no {provider} here, only {', '.join(there)}")
    wanted, names = ([slot.name for slot in slots] for slots in (session.get_inputs(), session.get_outputs()))
    return lambda inputs: dict(zip(names, session.run(None, _in_order(inputs, wanted)), strict=True))


def _openvino(file: str, job: dict[str, Any]) -> Session:
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", job["settings"] | {"INFERENCE_NUM_THREADS": job["threads"]})
    wanted, names = ([port.any_name for port in ports] for ports in (compiled.inputs, compiled.outputs))
    request = compiled.create_infer_request()
    return lambda inputs: dict(zip(names, request.infer(_in_order(inputs, wanted), share_inputs=True).to_tuple(), strict=True))


def _torch(file: str, job: dict[str, Any]) -> Session:
    import torch
    from torch._inductor.constant_folding import constant_fold

    torch.set_num_threads(job["threads"])
    plain: Any = torch.export.load(file).module(check_guards=False)
    constant_fold(plain)
    compiled = torch.compile(plain, dynamic=False, options={"freezing": True}) if job["compiled"] else plain

    def run(inputs: Arrays) -> Arrays:
        tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
        model = compiled if len(next(iter(tensors.values()))) == job["batch_size"] else plain
        with torch.inference_mode():
            outputs = model(**tensors) if job["by_name"] else model(*tensors.values())
        return dict(_named(outputs, () if isinstance(outputs, dict) else ("output",)))

    return run


def _in_order(inputs: Arrays, wanted: list[str]) -> Arrays:
    """The inputs by the names that the file has for them: the same, or in the same order."""
    return inputs if inputs.keys() == set(wanted) else dict(zip(wanted, inputs.values(), strict=True))


def _named(outputs: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(outputs, dict | list | tuple):
        yield ".".join(path), outputs.numpy()
        return
    for key, part in outputs.items() if isinstance(outputs, dict) else enumerate(outputs):
        if part is not None:
            yield from _named(part, (*path, str(key)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
