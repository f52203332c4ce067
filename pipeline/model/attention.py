"""Causal multi-head self-attention (Vaswani et al. 2017), as in GPT-2, with slots for later variants."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.model.attend import attend
from pipeline.model.context import Context
from pipeline.model.dropout import Dropout
from pipeline.model.linear import Linear
from pipeline.model.position import ALiBi, Rotary


class ValueMix(nn.Module):
    """Adds a token's value embedding, times one learned weight, to its attention values.

    Value embeddings are from modded-nanogpt's speed records, 2024.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, values: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Both arguments and the result are (B, T, key and value channels)."""
        return values + (self.weight * embedding).to(values.dtype)


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and the positions before it. (B, T, C) -> (B, T, C).

    If `n_kv_head` is less than `n_head`, groups of query heads share a key and value head (Ainslie et al.
    2023). GPT-2 leaves the other slots empty: `rotary` rotates queries and keys, `alibi` adds biases to the
    attention scores, `q_norm` and `k_norm` normalize each head, `value_mix` adds a second token embedding
    to the values.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        bias: bool,
        dropout: float,
        n_kv_head: int | None = None,
        rotary: Rotary | None = None,
        alibi: ALiBi | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        value_mix: ValueMix | None = None,
    ) -> None:
        super().__init__()
        self.n_head = n_head
        self.n_kv_head = n_kv_head or n_head
        self.head_size = n_embd // n_head
        self.dropout = dropout
        channels = n_embd + 2 * self.n_kv_head * self.head_size
        self.c_attn = Linear(n_embd, channels, bias=bias)
        self.c_proj = Linear(n_embd, n_embd, bias=bias)
        self.resid_dropout = Dropout(dropout)
        self.rotary = rotary
        self.alibi = alibi
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.value_mix = value_mix

    def forward(self, x: torch.Tensor, context: Context, layer_index: int) -> torch.Tensor:
        """(B, T, C) -> (B, T, C), or (B, 1, C) if the context asks for the last position only."""
        q, k, v = self._heads(x, context)
        if context.last_only:
            q = q[:, :, -1:]
        if context.cache is not None:
            k, v = context.cache.append(layer_index, k, v, context.rows)
        mask = self._mask(q, context, x.shape[1])
        dropout = self.dropout if self.training else 0.0
        # Without a mask, a first pass is causal, and one last query sees every key.
        y = attend(q, k, v, mask, dropout, is_causal=mask is None and q.shape[2] > 1)
        y = y.transpose(1, 2).flatten(2)
        return self.resid_dropout(self.c_proj(y))

    def _mask(self, q: torch.Tensor, context: Context, T: int) -> torch.Tensor | None:
        """Which keys are seen, or what is added to their scores, (1 or B, 1 or heads, queries, keys)."""
        cache = context.cache
        if self.alibi is None and (cache is None or not cache.needs_mask):
            return None
        if cache is not None:
            ages = cache.ages(context.rows) if self.alibi is not None else None
            mask = cache.mask(context.rows)
        else:
            positions = torch.arange(T, device=q.device)
            ages = positions[:, None] - positions
            mask = (ages >= 0)[None, None]
        queries = slice(T - q.shape[2], T)
        if self.alibi is None or ages is None:
            return mask[:, :, queries]
        return self.alibi(ages[..., queries, :], mask[:, :, queries], like=q)

    def fill_cache(self, x: torch.Tensor, context: Context, layer_index: int) -> None:
        """Append the keys and values of x (B, T, C) to the KV cache without computing attention."""
        _, k, v = self._heads(x, context)
        assert context.cache is not None, "fill_cache needs a KV cache"
        context.cache.append(layer_index, k, v, context.rows)

    def _heads(self, x: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values for x (B, T, C), each (B, heads, T, head size)."""
        B, T, C = x.shape
        kv_channels = self.n_kv_head * self.head_size
        q, k, v = self.c_attn(x).split([C, kv_channels, kv_channels], dim=-1)
        if self.value_mix is not None:
            assert context.value_embedding is not None
            v = self.value_mix(v, context.value_embedding)
        q, k, v = (part.view(B, T, -1, self.head_size).transpose(1, 2) for part in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            positions = context.positions(T)
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v
