"""Activation checkpointing: less memory in training, for one more forward pass through the blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from pipeline.model.block import Block
from pipeline.model.context import Context
from pipeline.model.gpt import GPT
from pipeline.model.hooks import when_training


def recompute_activations(model: GPT) -> GPT:
    """Let each block of `model` keep only its input for the backward pass, in training; return the model.

    The backward pass computes what lies between anew, with the same random numbers (Chen et al. 2016), so
    gradients are equal to the bit. Compile the model before.
    """
    for block in model.modules():
        if isinstance(block, Block):
            when_training(block, "forward", partial(_recomputed, block.forward))
    return model


def _recomputed(
    forward: Callable[..., torch.Tensor], x: torch.Tensor, context: Context, layer_index: int
) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return forward(x, context, layer_index)
    passes = iter((context, context.again()))
    y: torch.Tensor = checkpoint(lambda x: forward(x, next(passes), layer_index), x, use_reentrant=False)
    return y
