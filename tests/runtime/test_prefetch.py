"""A thread reads batches ahead, which changes neither what comes nor when an error is raised."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pipeline.runtime.prefetch import Prefetch
from pipeline.tokens.batches import Batch

CPU = torch.device("cpu")


def numbered(number: int) -> Batch:
    return torch.tensor([number]), torch.tensor([number + 1])


def test_any_order_gives_the_batch_that_was_asked_for() -> None:
    with Prefetch(numbered, CPU) as batches:
        for number in (0, 1, 2, 7, 8, 3, 3, 4):
            assert [part.item() for part in batches(number)] == [number, number + 1]


def test_the_next_batch_is_read_before_it_is_asked_for() -> None:
    was_read = threading.Event()

    def read(number: int) -> Batch:
        if number == 6:
            was_read.set()
        return numbered(number)

    with Prefetch(read, CPU) as batches:
        batches(5)
        assert was_read.wait(10)


def test_an_error_is_raised_for_the_batch_that_has_it() -> None:
    def read(number: int) -> Batch:
        if number == 2:
            raise OSError("the disk is gone")
        return numbered(number)

    with Prefetch(read, CPU) as batches:
        batches(0)
        batches(1)
        with pytest.raises(OSError, match="the disk is gone"):
            batches(2)


def test_no_thread_is_left() -> None:
    def slow(number: int) -> Batch:
        time.sleep(0.05)
        return numbered(number)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Prefetch(slow, CPU) as batches:
        batches(0)
        raise KeyboardInterrupt
    assert threading.active_count() == before
