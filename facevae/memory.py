"""The machine's memory: how much there is and was taken, and how it is kept."""

import ctypes
import gc
import os
import sys
from pathlib import Path

import torch


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: large activations are otherwise paged in anew at each step.

    Does nothing where the C library has no `mallopt`.
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
    """Parts (K, B, …) one after another as (K, N, …), in one block, which grows as they come.

    Many small ones, kept while large activations come and go between them, would leave holes that
    no activation fits in: half a GB of them for every 10,000 faces.
    """

    def __init__(self) -> None:
        self._block, self._count = torch.empty(0, 0), 0

    def add(self, part: torch.Tensor) -> None:
        """Append it, at least one row."""
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
        """All of them so far."""
        return self._block[:, : self._count]


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device in bytes, with what PyTorch holds unused; 0 for any other."""
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
    """Have `peak_bytes` of a CUDA device count from now on, with nothing held that was freed."""
    if device.type == "cuda":
        gc.collect()  # a stage that is done with, say
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is torch, on any device, that got no more memory."""
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
    """Memory in bytes: `process` now (the most so far where that is all one can know), and the
    most that PyTorch has held on a CUDA device as `gpu`. What is not known is not there.
    """
    process = _resident_bytes() or peak_bytes(torch.device("cpu"))
    found = {"process": process} if process else {}
    return found | ({"gpu": peak_bytes(device)} if device.type == "cuda" else {})


def _resident_bytes() -> int:
    """Of this process, now; 0 where the system does not say it as Linux does."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
