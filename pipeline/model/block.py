"""One transformer layer: attention and feed-forward, each added to the residual stream."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.model.attention import CausalSelfAttention
from pipeline.model.context import Context


class Block(nn.Module):
    """A pre-norm residual block (Radford et al. 2019): two norms, attention, MLP. (B, T, C) -> (B, T, C)."""

    def __init__(self, ln_1: nn.Module, attn: CausalSelfAttention, ln_2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.ln_1 = ln_1
        self.attn = attn
        self.ln_2 = ln_2
        self.mlp = mlp

    def forward(self, x: torch.Tensor, context: Context, layer_index: int) -> torch.Tensor:
        """`layer_index` says which entry of the KV cache belongs to this application of the block.

        The result is (B, 1, C) if the context asks for the last position only.
        """
        y = self.attn(self.ln_1(x), context, layer_index)
        x = (x[:, -1:] if context.last_only else x) + y
        return x + self.mlp(self.ln_2(x), context)

    def fill_cache(self, x: torch.Tensor, context: Context, layer_index: int) -> None:
        """Cache the keys and values of x (B, T, C) for later tokens, without computing the block's output."""
        self.attn.fill_cache(self.ln_1(x), context, layer_index)


class LayerDropout(nn.Module):
    """Wraps a block; in training, each sequence skips it with this probability (Huang et al. 2016).

    The block is computed only for the other sequences. If there are none, it is computed for one, whose
    result is not used: so each parameter has a gradient, as training on several processes needs.
    """

    def __init__(self, block: Block, probability: float) -> None:
        super().__init__()
        self.block = block
        self.probability = probability

    def forward(self, x: torch.Tensor, context: Context, layer_index: int) -> torch.Tensor:
        if not self.training:
            return self.block(x, context, layer_index)
        rows = (torch.rand(x.shape[0], device="cpu") >= self.probability).nonzero()[:, 0]  # see `seed`
        used = len(rows) > 0
        rows = (rows if used else torch.zeros(1, dtype=torch.int64)).to(x.device, non_blocking=True)
        y = self.block(x[rows], context.select(rows), layer_index)
        return x.index_copy(0, rows, y if used else x[rows] + 0 * y)

    def fill_cache(self, x: torch.Tensor, context: Context, layer_index: int) -> None:
        self.block.fill_cache(x, context, layer_index)
