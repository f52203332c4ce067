"""One transformer layer: attention and feed-forward, each added to the residual stream."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.model.cache import LayerCache


class Block(nn.Module):
    """A pre-norm residual block (Radford et al. 2019); its four parts are slots. (B, T, C) -> (B, T, C)."""

    def __init__(self, ln_1: nn.Module, attn: nn.Module, ln_2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.ln_1 = ln_1
        self.attn = attn
        self.ln_2 = ln_2
        self.mlp = mlp

    def forward(self, x: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))
