"""The machine's memory: its size, how much was used, and how freed memory is kept."""

import ctypes
import gc
import os
import sys
from pathlib import Path

import torch


def keep_freed_memory() -> None:
    """Have glibc keep freed memory; otherwise large activations are paged in anew at each step.

    Does nothing if the C library has no `mallopt`.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # from glibc's malloc.h
    mallopt(m_mmap_threshold, 2**31 - 1)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 2**26)


class RowBuffer:
    """Concatenates tensors (K, B, …) into one block (K, N, …), which grows as they are added.

    Many small tensors, allocated between large activations, would fragment memory: by half a GB for
    every 10,000 faces.
    """

    def __init__(self) -> None:
        self._block, self._count = torch.empty(0, 0), 0

    def add(self, part: torch.Tensor) -> None:
        """Append a tensor (K, B, …) with at least one row."""
        end = self._count + part.shape[1]
        if end > self._block.shape[1]:
            larger = part.new_empty(len(part), 2 * end, *part.shape[2:])
            if self._count:
                larger[:, : self._count] = self.rows
            self._block = larger
        self._block[:, self._count : end] = part
        self._count = end

    @property
    def rows(self) -> torch.Tensor:
        """All rows so far, (K, N, …)."""
        return self._block[:, : self._count]


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device in bytes, PyTorch's unused cache included; else 0."""
    if device.type != "cuda":
        return 0
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def total_bytes(device: torch.device) -> int:
    """All memory of a CUDA device in bytes, else of the machine (0 if unknown)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far, in bytes: of a CUDA device, else of this process (0 if unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start_peak(device: torch.device) -> None:
    """Reset `peak_bytes` of a CUDA device, after returning freed memory to it."""
    if device.type == "cuda":
        gc.collect()  # frees, say, a stage that has ended
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch raised `error` because memory ran out, on any device."""
    # the CPU, cuBLAS and cuDNN raise plain RuntimeErrors; cuDNN's last one is that no algorithm is
    # left, once each has been refused its workspace
    signs = (
        "out of memory",
        "can't allocate memory",
        "ALLOC_FAILED",
        "unable to find an engine to execute",
    )
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def memory_bytes(device: torch.device) -> dict[str, int]:
    """Memory in bytes: of the process now, as `process`, and PyTorch's peak on a GPU, as `gpu`.

    Where the current use is unknown, `process` is the peak. Unknown entries are left out.
    """
    process = _resident_bytes() or peak_bytes(torch.device("cpu"))
    found = {"process": process} if process else {}
    return found | ({"gpu": peak_bytes(device)} if device.type == "cuda" else {})


def _resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 on systems without Linux's /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
