"""The KV cache: keys and values that attention has computed, kept for later tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch


class KVCache:
    """Keys and values of the last `block_size` positions of `batch` sequences, for every layer.

    It is a ring: position p is in slot p % `block_size`, so once it is full, a new token takes the place of
    the one that leaves the window. Sequences of different lengths end together: each begins with `padding`
    (B,) positions that none of its tokens attends to. Before each pass, call `begin`; after it, `advance`.

    The trunk assigns each `layer_index`. Each step of a loop has its own, because its keys differ.
    """

    def __init__(self, block_size: int, batch: int, padding: torch.Tensor | None = None) -> None:
        self.block_size = block_size
        self.length = 0  # positions that every layer has seen, padding included
        self.positions = torch.empty(0, dtype=torch.long)  # (T,): those of this pass
        self._batch = batch
        self._padding = None if padding is None else padding.clone()
        # (B, heads, block_size, head size) each; what is not seen yet is arbitrary
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slots = self.positions
        self._mask: torch.Tensor | None = None
        self._keys = 0  # slots that this pass attends to
        self._fixed: torch.Tensor | None = None  # `length` on the device, if shapes are fixed

    def begin(self, new: int, device: torch.device) -> None:
        """Prepare a pass over `new` positions after `length`. A full cache takes them one by one."""
        end = self.length + new
        assert new == 1 or end <= self.block_size, "the KV cache is full: start a new one, or read one token"
        if self._fixed is None:
            self.positions = torch.arange(self.length, end, device=device)
            self._keys = min(end, self.block_size)
        else:
            assert new == 1, "with fixed shapes, tokens come one by one"
            self.positions = self._fixed
            self._keys = self.block_size
        self._slots = self.positions % self.block_size
        self._mask = None

    def advance(self, positions: int) -> None:
        """Call this after every layer has appended this many positions."""
        self.length += positions
        if self._fixed is not None:
            self._fixed += positions

    def append(
        self, layer_index: int, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of this pass, (B, heads, T, head size).

        Returns all that are kept, (B, heads, keys, head size), in the order of their slots. With `rows`,
        arguments and results are for those sequences of the batch only.
        """
        if layer_index not in self.layers:
            _, heads, _, head_size = keys.shape
            shape = (self._batch, heads, self.block_size, head_size)
            self.layers[layer_index] = (keys.new_empty(shape), keys.new_empty(shape))
        kept = self.layers[layer_index]
        for buffer, new in zip(kept, (keys, values), strict=True):
            if rows is None:
                buffer.index_copy_(2, self._slots, new)
            else:
                buffer[rows[:, None], :, self._slots] = new.transpose(1, 2)
        all_keys, all_values = (buffer[:, :, : self._keys] for buffer in kept)
        return (all_keys, all_values) if rows is None else (all_keys[rows], all_values[rows])

    @property
    def own_positions(self) -> torch.Tensor:
        """The positions of this pass in each sequence's own text, (T,) or (B, T); 0 for padding."""
        if self._padding is None:
            return self.positions
        return (self.positions - self._padding[:, None]).clamp_min(0)

    def ages(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """How many positions each key is before each position of this pass, (T, keys), in every sequence."""
        slots = torch.arange(self._keys, device=self.positions.device)
        return (self.positions[:, None] - slots) % self.block_size

    @property
    def needs_mask(self) -> bool:
        """Whether this pass sees other keys than all, or than a first pass that is causal."""
        several = len(self.positions) > 1
        return self._fixed is not None or self._padding is not None or (several and self.length > 0)

    def mask(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Which keys each position of this pass attends to, (1 or B, 1, T, keys).

        They are its own and those before it, but no padding. Padding attends to itself, because the softmax
        of nothing is not a number.
        """
        if self._mask is None:
            own = self.own_positions.view(-1, 1, len(self.positions), 1)
            self._mask = self.ages() <= own
        return self._mask if rows is None or len(self._mask) == 1 else self._mask[rows]

    def select(self, rows: torch.Tensor) -> KVCache:
        """A copy for the sequences in `rows`; list a sequence twice to continue it in two ways."""
        copy = KVCache(self.block_size, len(rows), None if self._padding is None else self._padding[rows])
        copy.length = self.length
        copy.layers = {
            layer_index: (keys[rows], values[rows]) for layer_index, (keys, values) in self.layers.items()
        }
        return copy

    def count_anew(self, turn_back: Callable[[torch.Tensor, int], torch.Tensor] | None) -> None:
        """Count positions from `block_size` less on, so that they stay small however long the text is.

        The window and all distances stay the same. `turn_back` undoes that many positions in keys that were
        rotated.
        """
        assert self.length >= self.block_size
        self.length -= self.block_size
        if self._fixed is not None:
            self._fixed -= self.block_size
        if self._padding is not None:
            self._padding -= self.block_size
        if turn_back is not None:
            for keys, _ in self.layers.values():
                keys.copy_(turn_back(keys, self.block_size))

    def fix_shapes(self) -> None:
        """Make every later pass the same operations on the same memory, as a CUDA graph needs.

        The position is then a number on the device, and attention masks the slots that are still empty.
        """
        self._fixed = torch.full((1,), self.length, device=self.positions.device)
        for kept in self.layers.values():
            for buffer in kept:
                buffer[:, :, self.length :] = 0.0  # what is masked may not be NaN either

    def go_back(self, length: int) -> None:
        """Forget that positions from `length` on were seen; they are written again. Needs fixed shapes."""
        assert self._fixed is not None
        self.length = length
        self._fixed.fill_(length)
