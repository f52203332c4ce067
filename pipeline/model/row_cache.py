"""A KV cache for sequences of different lengths, which join and leave while the others go on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.model.cache import KVCache

# A pass has a multiple of so many rows. Libraries multiply a remainder in another order, which rounds
# differently: a row alone would not get the very same numbers as among others.
UNIT = 4


class RowCache(KVCache):
    """Keys and values of the last `block_size` positions of each row, for every layer.

    A row is a sequence with a length of its own: position p of it is in slot p % `block_size`, whatever the
    others do. So it is computed as it would be alone. A pass reads one new position of every row. The rows in
    use are the first ones; when one leaves, the last one takes its place.

    A pass also computes some rows that are not in use, up to `width`. What they give means nothing.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size, batch=0)
        self.lengths: list[int] = []  # positions seen of each row
        self._rows = self._counts = torch.empty(0, dtype=torch.long)  # (B,): 0, 1, ...; `lengths`

    @property
    def width(self) -> int:
        """The number of rows in a pass."""
        return -(-len(self.lengths) // UNIT) * UNIT

    def join(self, read: KVCache) -> None:
        """Add a row with what another cache of one sequence, without padding, has seen."""
        row, seen = len(self.lengths), min(read.length, self.block_size)
        for layer_index, one in read.layers.items():
            kept = self.layers.get(layer_index)
            if kept is None or len(kept[0]) <= row:
                kept = self.layers[layer_index] = self._with_room(kept, one)
            for buffer, new in zip(kept, one, strict=True):
                buffer[row, :, :seen] = new[0, :, :seen]
        self.lengths.append(read.length)
        self._count()

    def leave(self, row: int) -> None:
        """Forget a row. The last one gets its index."""
        last = len(self.lengths) - 1
        if row != last:
            for kept in self.layers.values():
                for buffer in kept:
                    buffer[row] = buffer[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.layers.clear()  # gives the memory back
        self._count()

    def begin(self, new: int, device: torch.device) -> None:
        assert new == 1, "rows take tokens one by one"
        if not len(self._rows):
            unused = self.width - len(self.lengths)
            self._counts = torch.tensor([*self.lengths, *[0] * unused], device=device)
            self._rows = torch.arange(len(self._counts), device=device)
        self.positions = self._counts[:, None, None]  # (B, 1, 1), to be broadcast over heads
        self._slots = self._counts % self.block_size  # (B,)
        self._keys = min(max(self.lengths) + 1, self.block_size)
        self._mask = None

    def advance(self, positions: int) -> None:
        self.lengths = [length + positions for length in self.lengths]
        self.length += positions
        self._counts = self._counts + positions

    def count_anew(self, turn_back: Callable[[torch.Tensor, int], torch.Tensor] | None) -> None:
        """As in KVCache, for the rows that have reached 2 x `block_size`."""
        rows = [row for row, length in enumerate(self.lengths) if length == 2 * self.block_size]
        for row in rows:
            self.lengths[row] -= self.block_size
        if turn_back is not None:
            for keys, _ in self.layers.values():
                keys[rows] = turn_back(keys[rows], self.block_size)
        self._count()

    def append(
        self, layer_index: int, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = self._rows if rows is None else rows
        slots, found = self._slots if rows is None else self._slots[rows], []
        for buffer, new in zip(self.layers[layer_index], (keys, values), strict=True):
            buffer[index, :, slots] = new[:, :, 0]
            seen = buffer[: len(self._rows), :, : self._keys]
            found.append(seen if rows is None else seen[rows])
        return found[0], found[1]

    @property
    def own_positions(self) -> torch.Tensor:
        return self._counts[:, None]

    def ages(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """How many positions each key is before the new position of each row, (B, 1, 1, keys)."""
        slots = torch.arange(self._keys, device=self.positions.device)
        ages = (self.positions[..., None] - slots) % self.block_size
        return ages if rows is None else ages[rows]

    @property
    def needs_mask(self) -> bool:
        return min(self.lengths) + 1 < self._keys

    def mask(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        if self._mask is None:
            self._mask = self.ages() <= self.positions[..., None]
        return self._mask if rows is None else self._mask[rows]

    def _with_room(
        self, kept: tuple[torch.Tensor, torch.Tensor] | None, one: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a layer with room for twice as many rows, so that they are copied rarely."""
        _, heads, _, head_size = one[0].shape
        rows = len(self.lengths)
        # Zeros, because what is masked may not be NaN.
        keys, values = (new.new_zeros(max(UNIT, 2 * rows), heads, self.block_size, head_size) for new in one)
        if kept is not None:
            keys[:rows], values[:rows] = kept
        return keys, values

    def _count(self) -> None:
        """After rows have changed: the longest one, and numbers on the device that `begin` makes again."""
        self.length = max(self.lengths, default=0)
        self._rows = self._counts = torch.empty(0, dtype=torch.long)
