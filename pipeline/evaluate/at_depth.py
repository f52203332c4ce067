"""A model that takes another number of steps than it was built for."""

from __future__ import annotations

from pipeline.model.gpt import GPT
from pipeline.model.recurrence import Recurrence
from pipeline.model.trunk import Stack, Trunk


def at_depth(model: GPT, depth: int) -> GPT:
    """A GPT with the same parts whose trunk takes `depth` steps, and whose `depths` end there.

    It copies nothing. Its logits are those that `model.logits_by_depth` gives at this depth; a loop can go
    beyond these. A stack was never trained to write after fewer layers: what it then writes shows what these
    layers know.
    """
    return GPT(model.embed, _with_depth(model.trunk, depth), model.head, model.block_size).train(
        model.training
    )


def _with_depth(trunk: Trunk, depth: int) -> Trunk:
    if isinstance(trunk, Stack):
        assert 1 <= depth <= len(trunk.h), f"{depth} of {len(trunk.h)} layers"
        return Stack(list(trunk.h)[:depth])  # type: ignore[arg-type]
    assert isinstance(trunk, Recurrence)
    prelude, coda = list(trunk.prelude), list(trunk.coda)
    return Recurrence(prelude, trunk.step, coda, depth, trunk.halting)  # type: ignore[arg-type]
