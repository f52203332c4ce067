"""The position-wise feed-forward network of GPT-2."""

from __future__ import annotations

import torch
from torch import nn


class FeedForward(nn.Module):
    """Widen four times, GELU, narrow back. (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))
