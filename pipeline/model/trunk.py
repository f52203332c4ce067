"""The trunk: what happens to the residual stream between the embedding and the head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pipeline.model.block import Block
from pipeline.model.cache import KVCache


class Stack(nn.Module):
    """Blocks one after the other. (B, T, C) -> (B, T, C)."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.h = nn.ModuleList(blocks)

    @property
    def depth(self) -> int:
        """Steps the residual stream goes through."""
        return len(self.h)

    def states(self, x: torch.Tensor, cache: KVCache | None = None) -> Iterator[torch.Tensor]:
        """The residual stream after each of the `depth` steps, each (B, T, C)."""
        for index, block in enumerate(self.h):
            x = block(x, cache.layer(index) if cache is not None else None)
            yield x

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        for state in self.states(x, cache):
            x = state
        return x
