"""Causal multi-head self-attention (Vaswani et al. 2017), as in GPT-2."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.cache import LayerCache


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and the positions before it. (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, n_head: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, n_head, T, C / n_head)
        if cache is not None:
            k, v = cache.append(k, v)
        past = k.shape[2] - T
        mask = None  # a first chunk is plainly causal; a single new token may attend to everything so far
        if past and T > 1:
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=past == 0 and T > 1,
        )
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))
