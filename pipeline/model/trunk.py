"""The trunk: what happens to the residual stream between the embedding and the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pipeline.model.block import Block, LayerDropout
from pipeline.model.context import Context
from pipeline.model.depth_distribution import DepthDistribution
from pipeline.model.part import Part


class Trunk(Part, ABC):
    """Turns embeddings (B, T, C) into what the head reads, (B, T, C)."""

    distribution: DepthDistribution | None = None  # of the steps that training takes, if they vary
    unit = "layers applied"  # what `depth` counts

    @property
    @abstractmethod
    def depth(self) -> int:
        """Steps that a call takes unless it asks for another number."""

    @property
    @abstractmethod
    def depths(self) -> Sequence[int]:
        """Where `readings` looks: numbers of steps."""

    @abstractmethod
    def forward(self, x: torch.Tensor, context: Context, depth: int | None = None) -> torch.Tensor:
        """Take `depth` steps, where the trunk has a choice."""

    @abstractmethod
    def readings(self, x: torch.Tensor, context: Context) -> Iterator[torch.Tensor]:
        """What the head would read after each of `depths`, each (B, T, C)."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """What a call runs, in order; a shared block as often as it is applied."""


class Stack(Trunk):
    """Blocks one after the other."""

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
        assert depth is None, "the number of layers is fixed"
        for state in self.readings(x, context):
            x = state
        return x

    def readings(self, x: torch.Tensor, context: Context) -> Iterator[torch.Tensor]:
        for layer_index, block in enumerate(self.h):
            x = block(x, context, layer_index)
            yield x

    def blocks(self) -> list[nn.Module]:
        return list(self.h)
