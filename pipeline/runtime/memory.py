"""How much memory a device has."""

from __future__ import annotations

import torch

from pipeline.storage.machine import Room, memory


def memory_of(device: torch.device) -> Room:
    """The memory of a device; that of the machine, if the device shares it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free)
    return memory()
