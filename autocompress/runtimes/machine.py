"""The machine that runtimes run on."""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from autocompress.result import Environment

_NEEDED = ("autocompress", "torch", "onnx", "onnxruntime", "torch-pruning")
_OPTIONAL = ("openvino",)


def environment() -> Environment:
    """This machine and the versions that matter to a measurement."""
    return Environment(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        versions={name: version(name) for name in _NEEDED} | {name: version(name) for name in _OPTIONAL if find_spec(name)},
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
