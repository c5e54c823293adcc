"""Does half precision pay on this CPU? The uncompressed networks in 16 bits beside floats, and beside 8-bit integers.

    python benchmarks/half.py                    (two minutes; the core should have nothing else to do)

For each experiment that needs no data of its own: its uncompressed file on ONNX Runtime in floats, the same turned to
float16 (onnxruntime.transformers.float16; what goes in and comes out stays in floats), and on OpenVINO in floats, float16
and bfloat16, as its hint of precision asks for. Beside them the network with 8-bit weights and activations, not trained, as
our files have it. All are timed in turn, many times over; printed is the least time as a share of that of floats on the same
runtime (below 1: quicker), the bytes as a share of those of floats, and how many of 500 validation examples get another answer
than from the floats.
"""

import io
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import onnx
import openvino
from cases import EXPERIMENTS
from interleaved import Session, least_ms
from onnxruntime.transformers.float16 import convert_float_to_float16
from printing import print_machine

from autocompress.baseline import Baseline, Data, load_data, make_baseline
from autocompress.experiment import load_experiment
from autocompress.policy import Finetune, Policy
from autocompress.runtimes import file_name
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.runtimes.openvino import SETTINGS
from autocompress.space import quantised
from autocompress.target import Target
from autocompress.task import Task
from autocompress.trial import run_trial

CASES = ("mnist_vgg", "mnist_vit")
EXAMPLES = 500

TARGET = Target.parse("onnxruntime-cpu", "openvino-cpu")


def in_float16(file: bytes) -> bytes:
    content: bytes = convert_float_to_float16(onnx.load(io.BytesIO(file)), keep_io_types=True).SerializeToString()
    return content


def on_openvino(file: bytes, precision: str) -> Session:
    core = openvino.Core()
    settings = SETTINGS | {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(core.read_model(file), "CPU", settings).create_infer_request()
    return lambda inputs: request.infer([inputs], share_inputs=True).to_tuple()[0]


def in_8_bits(task: Task, data: Data, baseline: Baseline) -> dict[str, bytes]:
    """The files of the network with all of it in 8 bits, by runtime; calibrated and not trained."""
    policy = Policy(layers={layer.name: quantised(8, TARGET.menu) for layer in baseline.layers})
    policy = policy.model_copy(update={"finetune": Finetune(steps=0)})
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        result = run_trial(policy, task, TARGET, lambda _: True, baseline=baseline, data=data, number=0, seed=0, folder=there)
        assert result.model is not None, result.error
        return {place.runtime: (there / file_name(TARGET, place)).read_bytes() for place in TARGET.each}


def main() -> None:
    print_machine()
    print("| network | | time | bytes | other answers |")
    print("| --- " * 5 + "|")
    for name in CASES:
        task = load_experiment(EXPERIMENTS / f"{name}.py").task
        with tempfile.TemporaryDirectory() as folder:
            data, baseline = load_data(task), make_baseline(task, TARGET, Path(folder), seed=0)
        floats, integers = baseline.file, in_8_bits(task, data, baseline)
        half = in_float16(floats)
        # Its name, what its time and its bytes are compared with, and the file.
        sessions: dict[str, tuple[str, bytes, Callable[[], Session]]] = {
            "ONNX Runtime, float": ("", floats, partial(OnnxSession, floats, TARGET)),
            "ONNX Runtime, float16": ("ONNX Runtime, float", half, partial(OnnxSession, half, TARGET)),
            "ONNX Runtime, 8-bit integers": (
                "ONNX Runtime, float",
                integers["onnxruntime"],
                partial(OnnxSession, integers["onnxruntime"], TARGET),
            ),
            "OpenVINO, float": ("", floats, partial(on_openvino, floats, "f32")),
            "OpenVINO, float16": ("OpenVINO, float", half, partial(on_openvino, floats, "f16")),
            "OpenVINO, bfloat16": ("OpenVINO, float", half, partial(on_openvino, floats, "bf16")),
            "OpenVINO, 8-bit integers": (
                "OpenVINO, float",
                integers["openvino"],
                partial(on_openvino, integers["openvino"], "f32"),
            ),
        }
        inputs: Any = data["validation"][0][:EXAMPLES]
        least = least_ms({what: make for what, (_, _, make) in sessions.items()}, inputs[:1])
        answers = {what: make()(inputs).argmax(-1) for what, (_, _, make) in sessions.items()}
        for what, (beside, file, _) in sessions.items():
            if not beside:
                print(f"| {name} | {what} | {least[what]:.4f} ms | {len(file):,} | |", flush=True)
                continue
            others = int((answers[what] != answers[beside]).sum())
            print(f"| | {what} | {least[what] / least[beside]:.2f} | {len(file) / len(floats):.2f} | {others} |", flush=True)


if __name__ == "__main__":
    main()
