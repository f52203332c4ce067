"""Two training steps; prints by how many bytes they raised the peak of the process's memory.

Run as `python -m tests.train.peak SWITCHES BATCH_SIZE DTYPE`, with the model's switches as JSON.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import torch

from pipeline.config.model import GPTConfig
from pipeline.model.build import build_gpt
from pipeline.optim.build import build_optimizer
from pipeline.runtime.device import autocast
from tests import tiny


def train(config: GPTConfig, batch_size: int, dtype: str) -> None:
    model = build_gpt(config).train()
    optimizer = build_optimizer(model, tiny.params().train)
    ids = torch.zeros(batch_size, config.block_size, dtype=torch.long)
    for _ in range(2):
        with autocast(torch.device("cpu"), dtype):
            loss = model(ids, targets=ids).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def peak() -> int:
    """The peak of this process's memory; on Linux, getrusage would begin with that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        return int(kib) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    torch.set_num_threads(1)
    switches, batch_size, dtype = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    train(tiny.config(), 1, dtype)  # what PyTorch needs for itself
    before = peak()
    train(tiny.config(**switches), batch_size, dtype)
    print(peak() - before)
