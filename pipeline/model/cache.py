"""The keys and values that attention has already computed, kept for the tokens that come after."""

from __future__ import annotations

import torch


class KVCache:
    """Keys and values of `batch` sequences, of at most `block_size` positions, wherever attention runs.

    `layer_index` is the trunk's: that of a layer, or of a step of a loop, which has keys of its own.
    """

    def __init__(self, block_size: int, batch: int) -> None:
        self._block_size = block_size
        self._batch = batch
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.length = 0  # positions that every layer has seen

    def append(
        self, layer_index: int, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add (B, heads, T, head size) keys and values after `length`; return all, (B, heads, length + T, …).

        With `rows`, they belong to those sequences of the batch.
        """
        if layer_index not in self._layers:
            _, heads, _, head_size = keys.shape
            shape = (self._batch, heads, self._block_size, head_size)
            self._layers[layer_index] = (keys.new_empty(shape), keys.new_empty(shape))
        end = self.length + keys.shape[2]
        assert end <= self._block_size, "the cache is full: the window has to slide, so its keys are stale"
        chosen = slice(None) if rows is None else rows
        for buffer, new in zip(self._layers[layer_index], (keys, values), strict=True):
            buffer[chosen, :, self.length : end] = new
        all_keys, all_values = self._layers[layer_index]
        return all_keys[chosen, :, :end], all_values[chosen, :, :end]

    def advance(self, positions: int) -> None:
        """Every layer has seen so many more positions."""
        self.length += positions

    def select(self, rows: torch.Tensor) -> KVCache:
        """A copy for some of the sequences; one that is named twice can be continued in two ways."""
        copy = KVCache(self._block_size, len(rows))
        for layer_index, (keys, values) in self._layers.items():
            copy.append(layer_index, keys[:, :, : self.length][rows], values[:, :, : self.length][rows])
        copy.advance(self.length)
        return copy
