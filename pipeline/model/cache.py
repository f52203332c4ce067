"""The KV cache: keys and values that attention has computed, kept for later tokens."""

from __future__ import annotations

import torch


class KVCache:
    """Keys and values of `batch` sequences of at most `block_size` positions, for every layer.

    The trunk assigns each `layer_index`. Each step of a loop has its own, because its keys differ.
    """

    def __init__(self, block_size: int, batch: int) -> None:
        self._block_size = block_size
        self._batch = batch
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.length = 0  # positions that every layer has seen

    def append(
        self, layer_index: int, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B, heads, T, head size) for the positions after `length`.

        Returns all keys and values so far, (B, heads, length + T, head size).
        With `rows`, arguments and results are for those sequences of the batch only.
        """
        if layer_index not in self._layers:
            _, heads, _, head_size = keys.shape
            shape = (self._batch, heads, self._block_size, head_size)
            self._layers[layer_index] = (keys.new_empty(shape), keys.new_empty(shape))
        end = self.length + keys.shape[2]
        assert end <= self._block_size, "the KV cache is full: start a new one for the shifted window"
        chosen = slice(None) if rows is None else rows
        for buffer, new in zip(self._layers[layer_index], (keys, values), strict=True):
            buffer[chosen, :, self.length : end] = new
        all_keys, all_values = self._layers[layer_index]
        return all_keys[chosen, :, :end], all_values[chosen, :, :end]

    def advance(self, positions: int) -> None:
        """Call this after every layer has appended this many positions."""
        self.length += positions

    def select(self, rows: torch.Tensor) -> KVCache:
        """A copy for the sequences in `rows`; list a sequence twice to continue it in two ways."""
        copy = KVCache(self._block_size, len(rows))
        for layer_index, (keys, values) in self._layers.items():
            copy.append(layer_index, keys[:, :, : self.length][rows], values[:, :, : self.length][rows])
        copy.advance(self.length)
        return copy
