"""A model that stops after fewer steps than it was built for."""

from __future__ import annotations

from pipeline.model.gpt import GPT
from pipeline.model.recurrence import Recurrence
from pipeline.model.trunk import Stack, Trunk


def early_exit(model: GPT, depth: int) -> GPT:
    """A GPT with the same parts whose trunk takes `depth` steps, one of `model.depths`; it copies nothing.

    Its logits are those that `model.logits_by_depth` gives at this depth. A stack was never trained to write
    after fewer layers: what it then writes shows what these layers know.
    """
    assert depth in model.depths, f"{depth} is not among {model.depths}"
    shortened = GPT(model.embed, _shortened(model.trunk, depth), model.head, model.block_size)
    return shortened.train(model.training)


def _shortened(trunk: Trunk, depth: int) -> Trunk:
    if isinstance(trunk, Stack):
        return Stack(list(trunk.h)[:depth])  # type: ignore[arg-type]
    assert isinstance(trunk, Recurrence)
    return Recurrence(
        list(trunk.prelude),  # type: ignore[arg-type]
        trunk.step,
        list(trunk.coda),  # type: ignore[arg-type]
        depth,
        trunk.halting,
        trunk.distribution,
        trunk.backprop_depth,
        trunk.scale_loss,
    )
