"""Which rows of each step's batch a rank computes. The batch is the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from pipeline.config.errors import UserError
from pipeline.config.params import Runtime, Train


@dataclass(frozen=True)
class Share:
    """One rank's part of each step: some of its micro-batches, and of these all rows or some.

    `part` numbers the ranks that share a micro-batch; it is 0 for one that has whole ones.
    """

    micro_batches: range
    rows: slice
    part: int = 0


def share_of(rank: int, size: int, micro_batches: int, batch_size: int) -> Share:
    """The part that one of `size` ranks has of `micro_batches` times `batch_size` rows.

    Whole micro-batches as far as that goes, because what is drawn for them and computed of them is then the
    same on any number of ranks. Raises UserError if the ranks cannot have equally many rows.
    """
    groups = gcd(micro_batches, size)
    ranks = size // groups  # that share a micro-batch
    if batch_size % ranks:
        raise UserError(
            f"NPROC: {size} processes cannot have equally many of the sequences of a step, which are "
            f"train.gradient_accumulation_steps x batch_size = {micro_batches} x {batch_size}; set NPROC to "
            f"{groups}, or batch_size to a multiple of {ranks}"
        )
    group, part = divmod(rank, ranks)
    rows = batch_size // ranks
    return Share(range(group, micro_batches, groups), slice(part * rows, (part + 1) * rows), part)


def check_processes(size: int, runtime: Runtime, train: Train) -> None:
    """Raise UserError if so many processes cannot share a step, or cannot train in `runtime.parallel`."""
    share_of(0, size, train.gradient_accumulation_steps, train.batch_size)
    if size == 1 and runtime.parallel != "auto":
        raise UserError(
            f"runtime.parallel = {runtime.parallel}: needs several processes, and this is one; start it with "
            "NPROC=2 or more, or set auto"
        )
    if runtime.parallel == "fsdp" and train.dtype == "float16":
        raise UserError("runtime.parallel = fsdp: not with train.dtype = float16; use bfloat16, or ddp")
