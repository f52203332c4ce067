"""The batches that a model sees: training windows in a seeded random order, evaluation windows in text order.

A training batch is a pure function of (seed, step), so resuming needs no loader state, and the order is the
same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.config.errors import UserError
from pipeline.tokens.keyed_random import mix, permute
from pipeline.tokens.shards import Tokens

TOGETHER = 32  # micro-batches whose order is computed at once

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and next tokens, int64, both (B, T)


class TrainingBatches:
    """Micro-batches drawn without replacement: each epoch visits every window once, in a new order.

    Each epoch cuts the corpus into as many windows of `block_size` tokens as fit with their targets. That
    leaves out a rest of (tokens - 1) % block_size targets, so an epoch begins at an offset from 0 to that
    rest, each offset once before any comes again: every token but the first is a target in turn.
    """

    def __init__(
        self, tokens: Tokens, block_size: int, batch_size: int, micro_batches: int, seed: int
    ) -> None:
        check_fits(len(tokens), block_size, "train")
        self._tokens = tokens
        self._block_size = block_size
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._seed = seed
        self.windows_per_epoch, rest = divmod(len(tokens) - 1, block_size)
        self._offsets = rest + 1
        self._known: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def starts(self, step: int, micro_batch: int) -> np.ndarray:
        """The position in the corpus at which each window of a micro-batch begins, int64 (B,)."""
        group, number = divmod(step * self._micro_batches + micro_batch, TOGETHER)
        known, starts = self._known
        if known != group:  # the same NumPy calls for many micro-batches cost little more than for one
            size = TOGETHER * self._batch_size
            starts = self._starts(np.arange(group * size, (group + 1) * size, dtype=np.int64))
            self._known = group, starts
        return starts[number * self._batch_size : (number + 1) * self._batch_size]

    def _starts(self, windows: np.ndarray) -> np.ndarray:
        """The same for windows by their numbers, counted from the start of the training, int64 (N,)."""
        epochs, positions = np.divmod(windows, self.windows_per_epoch)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            order = permute(positions[rows], self.windows_per_epoch, self._key(epoch))
            starts[rows] = order * self._block_size + self._offset(epoch)
        return starts

    def _offset(self, epoch: np.int64) -> np.ndarray:
        turn, number = np.divmod(epoch, self._offsets)
        return permute(np.array([number]), self._offsets, mix(self._key(turn)))

    def _key(self, number: np.int64) -> np.uint64:
        return mix(np.uint64(self._seed) ^ mix(np.uint64(number)))

    def micro_batch(self, step: int, micro_batch: int, rows: slice = slice(None)) -> Batch:
        """Inputs and targets of one micro-batch, or of some of its rows, each (B, T)."""
        starts = self.starts(step, micro_batch)[rows]
        both = torch.from_numpy(self._tokens.windows(starts, self._block_size + 1))
        return both[:, :-1], both[:, 1:]


def evaluation_windows(
    tokens: Tokens, block_size: int, batch_size: int, windows: int | None = None
) -> Iterator[Batch]:
    """Adjacent windows from the start of a split: every token but the first is predicted exactly once.

    A shorter last window is a batch of its own. `windows` limits the number of windows; None means all.
    """
    full_windows, rest = _windows(tokens, block_size, windows)
    for first in range(0, full_windows, batch_size):
        rows = min(batch_size, full_windows - first)
        span = tokens.read(first * block_size, (first + rows) * block_size + 1).astype(np.int64)
        ids = torch.from_numpy(span)
        yield ids[:-1].view(rows, block_size), ids[1:].view(rows, block_size)
    if rest:
        span = tokens.read(full_windows * block_size, len(tokens)).astype(np.int64)
        ids = torch.from_numpy(span)
        yield ids[None, :-1], ids[None, 1:]


def count_batches(tokens: Tokens, block_size: int, batch_size: int, windows: int | None = None) -> int:
    """How many batches `evaluation_windows` yields."""
    full_windows, rest = _windows(tokens, block_size, windows)
    return -(-full_windows // batch_size) + (rest > 0)


def _windows(tokens: Tokens, block_size: int, limit: int | None) -> tuple[int, int]:
    """How many full windows are evaluated, and how many tokens the shorter one after them predicts."""
    full_windows, rest = divmod(len(tokens) - 1, block_size)
    return (full_windows, rest) if limit is None or limit > full_windows else (limit, 0)


def check_fits(tokens: int, block_size: int, split: str) -> None:
    """Raise UserError if a split of so many tokens is too short for one window and its targets."""
    if tokens <= block_size:
        raise UserError(
            f"model.block_size = {block_size} needs {block_size + 1} tokens, but the {split} split has "
            f"{tokens}; use block_size <= {tokens - 1} or more text"
        )
