"""Dropout (Srivastava et al. 2014), with random numbers that are cheap on a CPU."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

LEVELS = 1 << 16  # probabilities are rounded to multiples of 1 / LEVELS


class Dropout(nn.Dropout):
    """`nn.Dropout`, computed by `dropout`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """`F.dropout`: each value is zero with probability `p`, and else divided by 1 - p."""
    if not p:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return x * kept(x, p)


def kept(x: torch.Tensor, p: float) -> torch.Tensor:
    """What `dropout` multiplies x (on a CPU) with: 0 or 1 / (1 - p), in its shape and dtype.

    PyTorch draws a number for each value, one after the other: half of the time of a training step of six
    layers. Four draws of 16 bits are one draw of 64.
    """
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)  # each from -LEVELS / 2 on
    dropped = min(round(p * LEVELS), LEVELS - 1)
    return (drawn >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
