"""GPT = embedding -> trunk -> head. Which parts fill those slots is decided in `build`, not here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.cache import KVCache
from pipeline.model.trunk import Stack


class Embedding(nn.Module):
    """Token embedding plus learned position embedding. Ids (B, T) -> (B, T, C)."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)

    def forward(self, ids: torch.Tensor, first_position: int = 0) -> torch.Tensor:
        positions = self.wpe.weight[first_position : first_position + ids.shape[1]]
        return self.drop(self.wte(ids) + positions)


class TiedProjection(nn.Module):
    """Writes tokens with the matrix that reads them (Press and Wolf 2017). (B, T, C) -> (B, T, vocabulary).

    The matrix stays the embedding's: it is trained, counted and saved once.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # a tuple, so that it is not registered a second time

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._embedding[0].weight)


class Head(nn.Module):
    """Final norm and projection to the vocabulary. (B, T, C) -> logits (B, T, vocabulary)."""

    def __init__(self, ln_f: nn.Module, lm_head: nn.Module) -> None:
        super().__init__()
        self.ln_f = ln_f
        self.lm_head = lm_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.ln_f(x))


class GPT(nn.Module):
    """A decoder-only language model; `block_size` is the longest sequence it takes."""

    def __init__(self, embed: Embedding, trunk: Stack, head: Head, block_size: int) -> None:
        super().__init__()
        self.embed = embed
        self.trunk = trunk
        self.head = head
        self.block_size = block_size

    @property
    def depth(self) -> int:
        """Points at which `logits_by_depth` reads the model."""
        return self.trunk.depth

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Logits (B, T, vocabulary) for ids (B, T), which continue what `cache` has seen."""
        return self.head(self.trunk(self._embed(ids, cache), cache))

    def next_logits(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Logits (B, vocabulary) for the token after ids (B, T)."""
        return self.head(self.trunk(self._embed(ids, cache), cache)[:, -1])

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats per token of targets (B, T) after ids (B, T)."""
        return cross_entropy(self(ids), targets)

    def logits_by_depth(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits read after 1, 2, … `depth` steps, each (B, T, vocabulary).

        Every state goes through the model's own final norm and head (the "logit lens", nostalgebraist 2020).
        """
        for state in self.trunk.states(self._embed(ids)):
            yield self.head(state)

    def num_params(self, positions: bool = True) -> int:
        """Parameters, tied ones counted once; position embeddings only on request, as nanoGPT counts."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if positions else total - self.embed.wpe.weight.numel()

    def _embed(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        assert ids.shape[1] <= self.block_size, f"{ids.shape[1]} tokens, block_size is {self.block_size}"
        return cast(torch.Tensor, self.embed(ids, cache.length if cache is not None else 0))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats of logits (B, T, vocabulary) against targets (B, T)."""
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction=reduction)
