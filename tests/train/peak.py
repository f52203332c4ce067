"""Two training steps; prints by how many bytes they raised the peak of the process's memory.

Run as `python -m tests.train.peak SWITCHES OVERRIDE...`, with the model's switches as JSON, and overrides
of the parameters for training, such as train.batch_size=2.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import torch

from pipeline.config.model import GPTConfig
from pipeline.config.params import Params
from pipeline.model.build import build_gpt
from pipeline.optim.build import build_optimizer
from pipeline.runtime.device import autocast
from pipeline.runtime.recompute import recompute_activations
from tests import tiny


def steps(config: GPTConfig, params: Params) -> None:
    model, train = build_gpt(config).train(), params.train
    if params.runtime.activation_checkpointing:
        recompute_activations(model)
    optimizer = build_optimizer(model, train)
    ids = torch.zeros(train.batch_size, config.block_size, dtype=torch.long)
    for _ in range(2):
        with autocast(torch.device("cpu"), train.dtype):
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
    switches, params = json.loads(sys.argv[1]), tiny.params(*sys.argv[2:])
    steps(tiny.config(), params.with_overrides(["train.batch_size=1"]))  # what PyTorch needs for itself
    before = peak()
    steps(tiny.config(**switches), params)
    print(peak() - before)
