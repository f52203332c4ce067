"""Trains members of the family on the ranks that were started, and writes their losses as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.config.params import Params
from pipeline.distributed.world import joined, world
from pipeline.train.fit import fit
from tests import tiny
from tests.family import VARIANTS

MODES = ("ddp", "fsdp")
FEW = (
    "train.max_iters=6",
    "train.lr_decay_iters=6",
    "train.eval_interval=6",
    "train.eval_iters=2",
    "runtime.checkpoint_interval=6",
    "log.log_interval=2",
)
OTHERS = {
    "muon": ("train.optimizer=muon", "model.moe=true", "model.value_embeddings=true"),
    "recomputed": ("runtime.activation_checkpointing=true",),
    "health": ("log.health_interval=3",),
    "bfloat16": ("train.dtype=bfloat16",),
    "accumulated": ("train.gradient_accumulation_steps=6",),
    # Ranks that share a micro-batch draw other masks.
    "rows": ("train.gradient_accumulation_steps=1", "model.dropout=0.0"),
    "rows-moe": ("train.gradient_accumulation_steps=1", "model.dropout=0.0", "model.moe=true"),
}
MEMBERS: dict[str, dict[str, Any]] = {**VARIANTS, **{name: {} for name in OTHERS}}


def params(member: str, *overrides: str) -> Params:
    """A few steps of two micro-batches, with dropout."""
    settings: dict[str, Any] = tiny.params(*FEW, *OTHERS.get(member, ()), *overrides).model_dump()
    settings["model"] |= MEMBERS[member]
    return Params.model_validate(settings)


def losses(member: str, tokens: Path, runs: Path, *overrides: str) -> dict[str, Any]:
    """The losses of each row of the log, and those of the best and the last model."""
    fitted = fit(params(member, *overrides), tokens, runs / member, lambda text: None)
    metrics = {name: fitted.metrics[name] for name in ("val_loss", "last_val_loss", "train_loss")}
    if not world().is_main:
        return {}
    return metrics | {"log": fitted.run.log.read_text()}


def main(tokens: str, out: str, *members: str) -> None:
    torch.set_num_threads(1)
    with joined():
        for member in members or MEMBERS:
            for mode in MODES:
                folder = Path(out, mode)
                found = losses(member, Path(tokens), folder, f"runtime.parallel={mode}")
                if world().is_main:
                    (folder / f"{member}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
