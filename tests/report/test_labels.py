"""Labels move apart as little as they have to, and the axes of losses end where it matters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.labels import spread, visible

LOSSES = st.lists(st.floats(-100, 100), max_size=12)


@given(LOSSES, st.floats(0.1, 10))
def test_labels_are_apart_in_the_order_that_they_want(wanted: list[float], gap: float) -> None:
    places = spread(wanted, gap)
    by_place = sorted(range(len(wanted)), key=lambda index: places[index])
    assert all(places[low] + gap <= places[high] + 1e-6 for low, high in pairwise(by_place))
    assert [wanted[index] for index in by_place] == sorted(wanted)


@given(st.lists(st.floats(-5, 5), max_size=10))
def test_labels_stay_between_the_limits_if_they_fit(wanted: list[float]) -> None:
    assert all(-5.0001 <= place <= 5.0001 for place in spread(wanted, 1.0, -5.0, 5.0))


def test_only_labels_that_would_overlap_move() -> None:
    assert spread([5.0, 1.0, 9.0], 1.0) == [5.0, 1.0, 9.0]
    assert spread([2.0, 2.0, 9.0], 1.0) == [1.5, 2.5, 9.0]
    assert spread([1.0, 2.9, 3.1], 2.0) == pytest.approx([1 / 3, 7 / 3, 13 / 3])


@given(st.lists(st.floats(0, 50), min_size=1), st.lists(st.floats(0, 50)))
def test_what_the_model_reaches_and_the_best_baseline_are_within(
    losses: list[float], lines: list[float]
) -> None:
    low, high = visible(losses, lines)
    assert low < min(losses) < high
    if lines:
        assert low < min(lines) < high


def test_losses_that_are_no_numbers_or_worse_than_guessing_do_not_count() -> None:
    low, high = visible([4.0, 2.0, 90.0, math.nan, math.inf], [3.0, 5.0])
    assert 1.5 < low < 2 and 4 < high < 4.5
    assert all(map(math.isfinite, visible([math.nan], [])))
