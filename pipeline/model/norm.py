"""RMSNorm with a fused kernel under autocast."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """Root mean square normalization (Zhang and Sennrich 2019), in the precision of its input.

    For a bfloat16 input and a float32 weight, PyTorch's RMSNorm has no fused kernel and warns.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
