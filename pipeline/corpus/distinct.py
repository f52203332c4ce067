"""Which documents of a user's text are kept: those that are neither empty nor the same as an earlier one."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

RECENT = 1 << 19  # hashes in a set, about 50 MB; then they are sorted into an array of 8 bytes each


class Distinct:
    """Takes documents one after another, and counts.

    Texts are compared by 64 bits of BLAKE2b: among 10 million documents, the probability that one is taken
    for another is 3 in a million.
    """

    def __init__(self) -> None:
        self.documents = self.characters = self.empty = self.duplicates = 0
        self.shortest = self.longest = 0  # characters
        self._recent = set[int]()
        self._earlier = np.empty(0, dtype=np.uint64)

    def is_new(self, pieces: Iterable[str]) -> bool:
        """Whether the document in these pieces has text that was not there before."""
        characters, blank, text = 0, True, blake2b(digest_size=8)
        for piece in pieces:
            characters += len(piece)
            blank = blank and not piece.strip()
            text.update(piece.encode())
        if blank:
            self.empty += 1
            return False
        if not self._add(int.from_bytes(text.digest(), "little")):
            self.duplicates += 1
            return False
        self.shortest = min(self.shortest or characters, characters)
        self.longest = max(self.longest, characters)
        self.documents += 1
        self.characters += characters
        return True

    def left_out(self) -> str:
        """What was left out, for a message; empty if nothing was."""
        parts = [f"{self.empty:,} empty"] if self.empty else []
        parts += [f"{self.duplicates:,} the same as an earlier one"] if self.duplicates else []
        return f"left out {' and '.join(parts)}" if parts else ""

    def _add(self, value: int) -> bool:
        """Whether this hash is new; it is not new any more."""
        place = int(np.searchsorted(self._earlier, np.uint64(value)))
        if value in self._recent or (place < len(self._earlier) and int(self._earlier[place]) == value):
            return False
        self._recent.add(value)
        if len(self._recent) == RECENT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=RECENT)
            self._earlier = np.sort(np.concatenate([self._earlier, recent]), kind="stable")
            self._recent.clear()
        return True
