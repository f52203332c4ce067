"""Position information inside attention: rotary positions and ALiBi."""

from __future__ import annotations

import math

import torch
from torch import nn


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): rotate pairs of channels by an angle proportional to the position.

    (B, heads, T, head size) -> same shape. Products of queries and keys then see only relative positions.
    """

    def __init__(self, head_size: int, block_size: int, base: float = 10_000.0) -> None:
        super().__init__()
        # On the CPU even if the model is built on the meta device: this table is not loaded with the weights.
        frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64, device="cpu") / head_size)
        positions = torch.arange(block_size, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: torch.Tensor, first_position: int) -> torch.Tensor:
        cos, sin = (
            self.get_buffer(name)[first_position : first_position + x.shape[2]].to(x.dtype)
            for name in ("cos", "sin")
        )
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class ALiBi(nn.Module):
    """Attention with linear biases (Press et al. 2022): the farther a key, the lower its score."""

    def __init__(self, n_head: int) -> None:
        super().__init__()
        # On the CPU even if the model is built on the meta device: slopes are not loaded with the weights.
        self.register_buffer("slopes", torch.tensor(slopes(n_head), device="cpu"), persistent=False)

    def forward(self, queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
        """Biases for the attention scores, (heads, queries, keys); -inf for keys after the query.

        The queries are the last `queries` positions of the keys. Device and dtype are those of `like`.
        """
        positions = torch.arange(keys, device=like.device)
        distance = positions[keys - queries :, None] - positions
        slope = self.get_buffer("slopes")[:, None, None]
        return (-slope * distance).masked_fill(distance < 0, -torch.inf).to(like.dtype)


def slopes(n_head: int) -> list[float]:
    """One slope per head: 2^(-8/n), 2^(-16/n), … for the largest power of two n <= `n_head`.

    Any further heads get slopes between these.
    """
    power = 2 ** math.floor(math.log2(n_head))
    regular = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2 ** (-8 * (head + 0.5) / power) for head in range(n_head - power)]
    return regular + between
