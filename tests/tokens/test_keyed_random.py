"""Keyed random numbers depend on their key alone, and are random enough."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tokens.keyed_random import mix, permute, uniform

STREAM = np.uint64(0xD1B54A32D192ED03)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_permute_is_a_bijection_that_changes_with_the_key(size: int) -> None:
    positions = np.arange(size)
    orders = [permute(positions, size, mix(np.uint64(key))) for key in range(20)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), positions)
    assert len({order.tobytes() for order in orders}) >= min(size, 15)


def test_permute_sends_each_position_everywhere_alike() -> None:
    keys = mix(np.arange(1500, dtype=np.uint64))
    for size in (3, 5, 7):
        orders = np.array([permute(np.arange(size), size, key) for key in keys])  # (1500, size)
        shares = np.array([(orders == image).mean(axis=0) for image in range(size)]) * size
        np.testing.assert_allclose(shares, 1, atol=0.4)


def test_permute_needs_no_neighbours() -> None:
    whole = permute(np.arange(1000), 1000, np.uint64(7))
    some = np.array([999, 3, 500])
    np.testing.assert_array_equal(permute(some, 1000, np.uint64(7)), whole[some])
    assert permute(np.arange(0), 1000, np.uint64(7)).shape == (0,)


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference implementation from seed 1234567.
    gamma, seed = 0x9E3779B97F4A7C15, 1234567
    states = np.array([(seed + i * gamma) % 2**64 for i in range(3)], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(states).tolist() == expected
    assert [int(mix(state)) for state in states] == expected


def test_a_number_depends_on_seed_stream_and_counter_alone() -> None:
    numbers = uniform(3, STREAM, np.arange(100))
    assert (numbers >= 0).all() and (numbers < 1).all()
    assert (uniform(3, STREAM, np.arange(50, 100)) == numbers[50:]).all()
    assert [float(uniform(3, STREAM, counter)[0]) for counter in range(100)] == numbers.tolist()
    assert not (uniform(3, np.uint64(1), np.arange(100)) == numbers).any()


def test_numbers_are_uniform() -> None:
    counts = np.histogram(uniform(7, STREAM, np.arange(20_000)), bins=10, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 28  # 9 degrees of freedom: p < 0.001


def test_other_seeds_give_other_numbers() -> None:
    numbers = np.stack([uniform(seed, STREAM, np.arange(2000)) for seed in range(4)])
    correlations = np.corrcoef(numbers)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.1
    neighbours = np.corrcoef(numbers[0, :-1], numbers[0, 1:])[0, 1]
    assert abs(neighbours) < 0.1
