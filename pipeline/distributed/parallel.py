"""How a model trains on several ranks: copies of it (DDP), or pieces of it on each (FSDP)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import nn

from pipeline.distributed.world import World
from pipeline.model.block import Block
from pipeline.model.gpt import GPT, Loss
from pipeline.model.hooks import Part


class Parallel:
    """Runs a model's training passes, whose gradients become the mean over the ranks: here those of one."""

    name = "none"

    def __init__(self, forward: Callable[..., Loss]) -> None:
        """`forward` is the forward pass of the model, prepared."""
        self.forward = forward

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch; only those of a step's last one exchange gradients."""
        return nullcontext()

    def free(self) -> None:
        """Let go of what an evaluation has gathered, before the weights change."""


class DDP(Parallel):
    """Each rank has the whole model; gradients are averaged while the backward pass goes on."""

    name = "ddp"

    def __init__(self, model: GPT, device: torch.device) -> None:
        kind = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in signature(kind).parameters  # than torch 2.11
        options: Any = {
            "forward_sync_buffers" if newer else "broadcast_buffers": False
        }  # all compute the same
        self._model = kind(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            init_sync=False,  # all have the main rank's weights
            **options,
        )
        super().__init__(self._model)

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self._model.no_sync()


class FSDP(Parallel):
    """Each rank has a piece of every tensor, of its gradient and of its optimizer's state (FSDP2).

    A block is gathered when it runs. What is used more than once in a pass, or from outside of its block, is
    gathered once for the whole pass: embeddings, the step of a loop, shared blocks and experts. So ranks may
    differ in how often they run it, as they do with random depths. On several machines, each machine has the
    whole model, and the pieces are those of its devices.
    """

    name = "fsdp"

    def __init__(self, model: GPT, device: torch.device, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        shape: tuple[int, ...] = (world.size,)
        names: tuple[str, ...] = ("shard",)
        if world.nodes > 1 and world.local_size > 1:
            shape, names = (world.nodes, world.local_size), ("replicate", "shard")
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        for block in blocks_of_their_own(model):
            fully_shard(block, mesh=mesh)
        sharded: Any = fully_shard(model, mesh=mesh)
        for method in ("hidden_states", "next_logits"):
            register_fsdp_forward_method(sharded, method)
        self._model = sharded
        super().__init__(sharded)

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        self._model.set_requires_gradient_sync(last)
        return nullcontext()

    def free(self) -> None:
        self._model.reshard()


def blocks_of_their_own(model: GPT) -> list[Block]:
    """The blocks that run once in a pass, and whose parameters nothing else uses."""
    trunk = model.trunk
    once = [*getattr(trunk, "h", ()), *getattr(trunk, "prelude", ()), *getattr(trunk, "coda", ())]
    lent = {
        id(parameter) for part in model.modules() if isinstance(part, Part) for parameter in part.borrowed()
    }
    blocks = [part for place in once for part in place.modules() if isinstance(part, Block)]
    return [
        block
        for block in blocks
        if blocks.count(block) == 1 and not any(id(parameter) in lent for parameter in block.parameters())
    ]


def parallel(mode: str, model: GPT, device: torch.device, world: World) -> Parallel:
    """The model on the device, prepared for the mode that `runtime.parallel` names.

    `auto` is DDP on several ranks. With FSDP, no device ever has the whole model.
    """
    if world.size > 1 and mode == "fsdp":
        return FSDP(model, device, world)
    model.to(device)
    return Parallel(model) if world.size == 1 else DDP(model, device)
