"""Random numbers that are pure functions of a key, and so the same on every rank and after resuming."""

from __future__ import annotations

from typing import Any

import numpy as np


def permute(positions: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """The values of a keyed permutation of range(size) at `positions`, without storing the permutation.

    A four-round Feistel network over the next even number of bits, applied again until the result is below
    `size` (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Shapes
    (N,) -> (N,), int64.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in mix(key + np.arange(4, dtype=np.uint64)):
            left, right = right, left ^ (mix(right + round_key) & mask)
        values[outside] = (left << half) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def mix(value: Any) -> Any:
    """Hash uint64 integers, one or an array, with SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = np.atleast_1d(value) + np.uint64(0x9E3779B97F4A7C15)  # unlike scalars, arrays overflow silently
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed if np.ndim(value) else mixed[0]


def uniform(seed: int, stream: np.uint64, counters: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (N,), one per counter. Each `stream` of a seed has its own."""
    key = mix(np.uint64(seed) ^ stream)
    bits = mix(np.atleast_1d(counters).astype(np.uint64) ^ key)
    return (bits >> np.uint64(11)).astype(np.float64) / 2**53
