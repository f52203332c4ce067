"""Ranks share the batch of a step: each row is computed once, by as many ranks as there may be."""

from __future__ import annotations

from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.distributed.share import share_of


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_each_row_is_one_ranks(micro_batches: int, batch_size: int, size: int) -> None:
    if batch_size % (size // gcd(size, micro_batches)):
        with pytest.raises(UserError, match="cannot have equally many"):
            share_of(0, size, micro_batches, batch_size)
        return
    shares = [share_of(rank, size, micro_batches, batch_size) for rank in range(size)]
    rows = [
        (micro_batch, row)
        for share in shares
        for micro_batch in share.micro_batches
        for row in range(batch_size)[share.rows]
    ]
    assert sorted(rows) == [(number, row) for number in range(micro_batches) for row in range(batch_size)]
    assert len({len(share.micro_batches) for share in shares}) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_ranks_have_whole_micro_batches_if_there_are_enough(size: int) -> None:
    shares = [share_of(rank, size, 6, 5) for rank in range(size)]
    assert all(share.part == 0 and range(5)[share.rows] == range(5) for share in shares)


def test_what_cannot_be_shared_is_refused_with_the_parameters_to_change() -> None:
    with pytest.raises(UserError) as refused:
        share_of(0, 4, 2, 5)
    assert str(refused.value) == (
        "NPROC: 4 processes cannot have equally many of the sequences of a step, which are "
        "train.gradient_accumulation_steps x batch_size = 2 x 5; set NPROC to 2, or batch_size to a "
        "multiple of 2"
    )
