"""Which rows of each step's batch a rank computes. The batch is the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from pipeline.config.errors import UserError
from pipeline.distributed.world import World


@dataclass(frozen=True)
class Share:
    """One rank's part of each step: some of its micro-batches, and of these all rows or some.

    `part` numbers the ranks that share a micro-batch; it is 0 for one that has whole ones.
    """

    micro_batches: range
    rows: slice
    part: int = 0


def share_of(world: World, micro_batches: int, batch_size: int) -> Share:
    """This rank's part of `micro_batches` times `batch_size` rows.

    Whole micro-batches as far as that goes, because what is drawn for them and computed of them is then the
    same on any number of ranks. Raises UserError if the ranks cannot have equally many rows.
    """
    groups = gcd(micro_batches, world.size)
    ranks = world.size // groups  # that share a micro-batch
    if batch_size % ranks:
        raise UserError(
            f"NPROC: {world.size} processes cannot share train.gradient_accumulation_steps x batch_size = "
            f"{micro_batches} x {batch_size} rows equally; let {world.size} divide the first, or {ranks} the "
            "second, or start fewer"
        )
    group, part = divmod(world.rank, ranks)
    rows = batch_size // ranks
    return Share(range(group, micro_batches, groups), slice(part * rows, (part + 1) * rows), part)
