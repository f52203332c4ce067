"""Training sees every window once an epoch, in an order fixed by seed and step; evaluation sees each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.tokens.batches import (
    TrainingBatches,
    check_fits,
    count_batches,
    evaluation_windows,
)
from pipeline.tokens.shards import Tokens


def counting(length: int, shard_tokens: int = 10**6) -> Tokens:
    """Tokens whose id is their position, in shards."""
    ids = np.arange(length, dtype=np.uint16)
    return Tokens([ids[first : first + shard_tokens] for first in range(0, length, shard_tokens)])


def step_inputs(batches: TrainingBatches, step: int, micro_batches: int) -> torch.Tensor:
    return torch.cat([batches.micro_batch(step, number)[0] for number in range(micro_batches)])


LENGTHS = [(9, 8), (10, 8), (16, 8), (17, 8), (24, 8), (25, 8), (100, 7), (50, 1), (3071, 1024)]


def epoch_starts(batches: TrainingBatches, epoch: int) -> np.ndarray:
    first = epoch * batches.windows_per_epoch
    return np.array([batches.starts(first + step, 0)[0] for step in range(batches.windows_per_epoch)])


@pytest.mark.parametrize(("length", "block_size"), LENGTHS)
def test_an_epoch_is_as_many_windows_as_fit_end_to_end(length: int, block_size: int) -> None:
    batches = TrainingBatches(counting(length), block_size, batch_size=1, micro_batches=1, seed=5)
    assert batches.windows_per_epoch == (length - 1) // block_size >= 1
    for epoch in range(4):
        starts = np.sort(epoch_starts(batches, epoch))
        np.testing.assert_array_equal(np.diff(starts), block_size)  # none twice
        assert starts[0] >= 0
        assert starts[-1] + block_size < length


@pytest.mark.parametrize(("length", "block_size"), LENGTHS)
@pytest.mark.parametrize("seed", [0, 5])
def test_every_token_but_the_first_is_a_target_in_turn(length: int, block_size: int, seed: int) -> None:
    batches = TrainingBatches(counting(length), block_size, batch_size=1, micro_batches=1, seed=seed)
    offsets = (length - 1) % block_size + 1
    for turn in (0, 7):
        times = np.zeros(length, dtype=int)
        for epoch in range(turn * offsets, (turn + 1) * offsets):
            for start in epoch_starts(batches, epoch):
                times[start + 1 : start + block_size + 1] += 1
        assert times[0] == 0
        assert times[1:].min() >= 1
        # Every offset came once: only near the two ends is a target left out by some of them.
        expected = np.minimum(np.arange(1, length), np.arange(1, length)[::-1])
        np.testing.assert_array_equal(times[1:], np.minimum(expected, offsets))


def test_a_batch_across_the_end_of_an_epoch_belongs_to_both() -> None:
    one = TrainingBatches(counting(100), 7, batch_size=1, micro_batches=1, seed=0)
    five = TrainingBatches(counting(100), 7, batch_size=5, micro_batches=1, seed=0)
    assert one.windows_per_epoch % 5
    singly = [one.starts(step, 0)[0] for step in range(60)]
    assert np.concatenate([five.starts(step, 0) for step in range(12)]).tolist() == singly


def test_epochs_differ_in_order_and_offset() -> None:
    batches = TrainingBatches(counting(2000), 8, batch_size=1, micro_batches=1, seed=0)
    starts = np.array([epoch_starts(batches, epoch) for epoch in range(32)])
    assert len({(epoch // 8).tobytes() for epoch in starts}) == 32
    turns = starts.min(axis=1).reshape(4, 8)  # 1,999 leaves a rest of 7, so 8 offsets
    assert [sorted(turn) for turn in turns.tolist()] == [list(range(8))] * 4
    assert len({turn.tobytes() for turn in turns}) > 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def batches(seed: int) -> TrainingBatches:
        return TrainingBatches(counting(500), 8, batch_size=3, micro_batches=2, seed=seed)

    forwards = [step_inputs(batches(1), step, 2) for step in range(50)]
    reused = batches(1)
    for step in reversed(range(50)):
        assert torch.equal(step_inputs(reused, step, 2), forwards[step])
    assert not torch.equal(forwards[0], forwards[1])
    assert not torch.equal(step_inputs(batches(2), 0, 2), forwards[0])
    step_inputs(batches(2**63 - 1), 10**9, 2)  # the largest seed, far into a run


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = TrainingBatches(counting(500), 8, 4, 1, seed=0).micro_batch(3, 0)
    assert inputs.shape == targets.shape == (4, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2)])
def test_a_step_is_the_same_however_it_is_divided(batch_size: int, micro_batches: int) -> None:
    tokens = counting(300)
    whole = TrainingBatches(tokens, 8, 12, 1, seed=3)
    divided = TrainingBatches(tokens, 8, batch_size, micro_batches, seed=3)
    for step in (0, 1, 17):
        assert torch.equal(step_inputs(divided, step, micro_batches), step_inputs(whole, step, 1))


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 16, 17, 18, 57, 64, 65, 66])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_predicts_every_token_but_the_first_once(length: int, batch_size: int) -> None:
    windows = list(evaluation_windows(counting(length), 8, batch_size))
    targets = [int(token) for _, batch in windows for token in batch.flatten()]
    assert targets == list(range(1, length))
    for inputs, batch in windows:
        assert torch.equal(batch, inputs + 1)
        assert inputs.dtype == batch.dtype == torch.int64
        assert len(inputs) <= batch_size
        assert inputs.shape[1] <= 8


def test_a_split_of_one_window_is_one_batch() -> None:
    ((inputs, targets),) = evaluation_windows(counting(9), 8, batch_size=4)
    assert inputs.tolist() == [list(range(8))]
    assert targets.tolist() == [list(range(1, 9))]


@pytest.mark.parametrize("length", [49, 52])  # 6 windows; 6 and a shorter one
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("windows", range(1, 8))
def test_evaluation_takes_the_first_windows(length: int, batch_size: int, windows: int) -> None:
    found = list(evaluation_windows(counting(length), 8, batch_size, windows))
    assert all(len(inputs) <= batch_size for inputs, _ in found)
    targets = [int(token) for _, batch in found for token in batch.flatten()]
    assert targets == list(range(1, min(length, 1 + 8 * windows)))


@pytest.mark.parametrize("shard_tokens", [1, 5, 8, 9])
def test_windows_reach_across_shards(shard_tokens: int) -> None:
    whole, sharded = counting(100), counting(100, shard_tokens)
    for one, other in zip(evaluation_windows(whole, 8, 3), evaluation_windows(sharded, 8, 3), strict=True):
        assert torch.equal(torch.stack(one), torch.stack(other))
    one, other = (TrainingBatches(tokens, 8, 3, 1, seed=0).micro_batch(2, 0) for tokens in (whole, sharded))
    assert torch.equal(torch.stack(one), torch.stack(other))


def test_a_split_shorter_than_a_window_is_an_error() -> None:
    check_fits(9, 8, "val")
    with pytest.raises(
        UserError, match="model.block_size = 8 needs 9 tokens, but the val split has 8"
    ) as error:
        check_fits(8, 8, "val")
    assert "use block_size <= 7" in str(error.value)
    with pytest.raises(UserError, match="the train split has 8"):
        TrainingBatches(counting(8), 8, 1, 1, seed=0)


@pytest.mark.parametrize("length", [9, 10, 17, 40, 41, 100])
@pytest.mark.parametrize("windows", [None, 1, 2, 3, 5, 99])
def test_count_batches_is_what_comes(length: int, windows: int | None) -> None:
    which = (counting(length), 8, 2, windows)
    assert count_batches(*which) == len(list(evaluation_windows(*which)))
