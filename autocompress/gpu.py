"""The GPU that this process trains on, and its memory. Who trains on the CPU (`device`) leaves every GPU alone."""

from typing import Literal

import torch

from autocompress.result import GpuMemory

CPU = torch.device("cpu")


def device_for(gpus: float | Literal["auto"]) -> torch.device:
    """Where who was given so much of a GPU trains ("auto": one, if there is any).

    Without, on the CPU: the GPUs of the machine, which Ray does not hide, are for others.
    """
    return torch.device("cuda") if gpus != 0 and torch.cuda.is_available() else CPU


def is_left_idle(gpus: float | Literal["auto"]) -> bool:
    """Whether this machine has a GPU and trials are given none."""
    return gpus == 0 and torch.cuda.is_available()


def check(device: torch.device) -> None:
    """Raises `RuntimeError` when the GPU does not answer this process any more.

    After some errors of a kernel CUDA refuses all that the process asks for; only another one is answered.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()


def cap(device: torch.device, fraction: float) -> None:
    """From here on torch takes at most this share, 0..1, of the memory of the GPU; more raises `torch.OutOfMemoryError`.

    Libraries that take memory by themselves, as those of CUDA do, are not bound by it.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction)


def begin_count(device: torch.device) -> None:
    """Gives back what earlier trials of this process have left over, and counts anew what is used at most."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def counted(device: torch.device) -> GpuMemory | None:
    """What was used since `begin_count`; None on the CPU, or on a GPU that answers nothing more after an error."""
    if device.type != "cuda":
        return None
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return None
    outside = max(0, total - free - torch.cuda.memory_reserved())
    return GpuMemory(peak=torch.cuda.max_memory_reserved(), outside=outside, total=total)
