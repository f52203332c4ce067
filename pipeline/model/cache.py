"""The keys and values that attention has already computed, kept for decoding one token at a time."""

from __future__ import annotations

import torch


class LayerCache:
    """Keys and values of one attention layer, growing in place up to `block_size` positions."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self.length = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add (B, heads, T, head size) keys and values; return all so far, (B, heads, length, head size)."""
        if self._keys is None or self._values is None:
            batch, heads, _, head_size = keys.shape
            self._keys = keys.new_empty(batch, heads, self._block_size, head_size)
            self._values = torch.empty_like(self._keys)
        end = self.length + keys.shape[2]
        assert end <= self._block_size, "the cache is full: the window has to slide, so its keys are stale"
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class KVCache:
    """One LayerCache per attention the trunk runs, made when first asked for."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._layers: dict[int, LayerCache] = {}

    def layer(self, index: int) -> LayerCache:
        return self._layers.setdefault(index, LayerCache(self._block_size))

    @property
    def length(self) -> int:
        """Positions seen so far."""
        return self._layers[0].length if self._layers else 0
