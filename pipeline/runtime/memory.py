"""How much memory a device has, and how the C library hands it out."""

from __future__ import annotations

import ctypes

import torch

from pipeline.storage.machine import Room, memory

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def memory_of(device: torch.device) -> Room:
    """The memory of a device; that of the machine, if the device shares it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free)
    return memory()


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensor instead of returning it to the system.

    By default glibc gets every large block from the system anew, page by page: a sixth of a step on a CPU.
    Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(option, value)
