"""The memory of the GPU that this process trains on. Where there is no GPU, nothing here does anything."""

import torch

from autocompress.result import GpuMemory


def cap(fraction: float) -> None:
    """From here on torch takes at most this share, 0..1, of the memory of the GPU; more raises `torch.OutOfMemoryError`.

    Libraries that take memory by themselves, as those of CUDA do, are not bound by it.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)


def begin_count() -> None:
    """Gives back what earlier trials of this process have left over, and counts anew what is used at most."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def counted() -> GpuMemory | None:
    """What was used since `begin_count`; None without a GPU, or with one that answers nothing more after an error."""
    if not torch.cuda.is_available():
        return None
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return None
    outside = max(0, total - free - torch.cuda.memory_reserved())
    return GpuMemory(peak=torch.cuda.max_memory_reserved(), outside=outside, total=total)
