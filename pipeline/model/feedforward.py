"""The position-wise feed-forward network of GPT-2, and its activations."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.dropout import Dropout
from pipeline.model.linear import Linear


class ReLU2(nn.Module):
    """The square of ReLU (So et al. 2021)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square()


class SwiGLU(nn.Module):
    """SiLU of the first half of the channels gates the second half (Shazeer 2020). (…, 2 H) -> (…, H)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class NewGELU(nn.GELU):
    """GPT-2's GELU, the tanh approximation (Hendrycks and Gimpel 2016, section 2)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": NewGELU,
    "relu2": ReLU2,
    "swiglu": SwiGLU,
}


def widths(n_embd: int, activation: str) -> tuple[int, int]:
    """Number of channels before and after the activation: 4 C for both, as in GPT-2.

    SwiGLU has three matrices instead of two, so each is two thirds as wide, rounded up to a multiple of 8.
    """
    if activation == "swiglu":
        hidden = -(-8 * n_embd // 3 // 8) * 8
        return 2 * hidden, hidden
    return 4 * n_embd, 4 * n_embd


class FeedForward(nn.Module):
    """Linear to four times the width, activation, linear back. (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, bias: bool, dropout: float, activation: str = "gelu") -> None:
        super().__init__()
        before, after = widths(n_embd, activation)
        self.c_fc = Linear(n_embd, before, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = Linear(after, n_embd, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, context: object = None) -> torch.Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))
