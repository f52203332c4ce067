"""The trunk: everything between the embedding and the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pipeline.model.block import Block, LayerDropout
from pipeline.model.context import Context
from pipeline.model.depth_distribution import DepthDistribution


class Trunk(nn.Module, ABC):
    """Maps embeddings (B, T, C) to the input of the head (B, T, C)."""

    distribution: DepthDistribution | None = None  # training draws the depth from it, if there is one
    unit = "layers applied"  # what `depth` counts

    @property
    @abstractmethod
    def depth(self) -> int:
        """The default number of steps."""

    @property
    @abstractmethod
    def depths(self) -> Sequence[int]:
        """The numbers of steps after which `readings` yields."""

    @abstractmethod
    def forward(self, x: torch.Tensor, context: Context, depth: int | None = None) -> torch.Tensor:
        """Run the trunk, with `depth` steps if its depth can vary. (B, T, C) -> (B, T, C)."""

    @abstractmethod
    def readings(self, x: torch.Tensor, context: Context) -> Iterator[torch.Tensor]:
        """The head's input, (B, T, C), after each number of steps in `depths`."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks that a call runs, in order; a shared block appears once per application."""


class Stack(Trunk):
    """A fixed sequence of blocks."""

    def __init__(self, blocks: Sequence[Block | LayerDropout]) -> None:
        super().__init__()
        self.h = nn.ModuleList(blocks)

    @property
    def depth(self) -> int:
        return len(self.h)

    @property
    def depths(self) -> Sequence[int]:
        return range(1, self.depth + 1)

    def forward(self, x: torch.Tensor, context: Context, depth: int | None = None) -> torch.Tensor:
        assert depth is None, "a stack has a fixed number of layers"
        for state in self.readings(x, context):
            x = state
        return x

    def readings(self, x: torch.Tensor, context: Context) -> Iterator[torch.Tensor]:
        for layer_index, block in enumerate(self.h):
            if context.next_only:
                context.last_only = layer_index == self.depth - 1
            x = block(x, context, layer_index)
            yield x

    def blocks(self) -> list[nn.Module]:
        return list(self.h)
