"""Position information inside attention: rotary positions and ALiBi."""

from __future__ import annotations

import math

import torch
from torch import nn


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): rotate pairs of channels by an angle proportional to the position.

    (B, heads, T, head size) -> same shape. Products of queries and keys then see only relative positions.
    Angles are computed in float64 for the first 2 x `block_size` positions; a KV cache counts anew before.
    """

    cos: torch.Tensor  # (2 x block_size, head size / 2)
    sin: torch.Tensor

    def __init__(self, head_size: int, block_size: int, base: float = 10_000.0) -> None:
        super().__init__()
        # On the CPU even if the model is built on the meta device: this table is not loaded with the weights.
        frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64, device="cpu") / head_size)
        positions = torch.arange(2 * block_size, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: torch.Tensor, positions: slice | torch.Tensor) -> torch.Tensor:
        """`positions` are those of the T vectors: a slice, or a tensor (T,) or (B, 1, T)."""
        return _rotate(x, self.cos[positions], self.sin[positions])

    def turn_back(self, x: torch.Tensor, distance: int) -> torch.Tensor:
        """Rotated vectors as they would be at a position that is `distance` <= block_size lower."""
        return _rotate(x, self.cos[distance], -self.sin[distance])


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class ALiBi(nn.Module):
    """Attention with linear biases (Press et al. 2022): the farther a key, the lower its score."""

    slopes: torch.Tensor

    def __init__(self, n_head: int) -> None:
        super().__init__()
        # On the CPU even if the model is built on the meta device: slopes are not loaded with the weights.
        self.register_buffer("slopes", torch.tensor(slopes(n_head), device="cpu"), persistent=False)

    def forward(self, ages: torch.Tensor, mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Biases for the attention scores, (1 or B, heads, queries, keys); -inf where `mask` is False.

        `ages` (queries, keys), or (B, 1, queries, keys), says how many positions each key is before each
        query. `mask` is (1 or B, 1, queries, keys). The dtype is that of `like`.
        """
        return (-self.slopes[:, None, None] * ages).where(mask, -torch.inf).to(like.dtype)


def slopes(n_head: int) -> list[float]:
    """One slope per head: 2^(-8/n), 2^(-16/n), … for the largest power of two n <= `n_head`.

    Any further heads get slopes between these.
    """
    power = 2 ** math.floor(math.log2(n_head))
    regular = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2 ** (-8 * (head + 0.5) / power) for head in range(n_head - power)]
    return regular + between
