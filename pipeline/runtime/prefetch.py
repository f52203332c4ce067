"""Batches on the device, each read by a thread while the device works on the one before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from pipeline.runtime.device import pinned, to_device
from pipeline.tokens.batches import Batch


class Prefetch:
    """Calls `read(number)` in a thread of its own, one number ahead of the one asked for.

    Any number may be asked for: the thread saves time if it is the next, and changes nothing if it is not.
    What `read` raises, the call that asks for that number raises. A context manager, which ends the thread.
    """

    def __init__(self, read: Callable[[int], Batch], device: torch.device) -> None:
        self._read = read
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def __call__(self, number: int) -> Batch:
        """Inputs and targets on the device."""
        if self._ahead is None or self._ahead[0] != number:
            self._ahead = number, self._thread.submit(self._prepare, number)
        batch = self._ahead[1].result()
        self._ahead = number + 1, self._thread.submit(self._prepare, number + 1)
        ids, targets = to_device(batch, self._device)
        return ids, targets

    def _prepare(self, number: int) -> Batch:
        ids, targets = pinned(self._read(number), self._device)
        return ids, targets

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
