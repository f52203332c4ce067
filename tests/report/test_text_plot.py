"""A curve in characters fits, begins and ends where the numbers do, and needs two places to be one."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from pipeline.report.text_plot import text_plot

FALLING = [(step, 4.0 - step / 25) for step in range(0, 101, 10)]


def test_a_falling_curve_goes_from_the_upper_left_to_the_lower_right() -> None:
    plot = text_plot(FALLING, [], width=30, height=5)
    assert len(plot) == 6
    assert plot[0].startswith("4 │") and plot[4].startswith("0 │")
    assert ord(plot[0][3]) & 0x01, "a dot in the upper left corner"
    assert len(plot[4]) == 29 and ord(plot[4][-1]) & 0x80, "a dot in the lower right corner"
    assert plot[5].split()[0] == "└0" and plot[5].split()[-1] == "100"
    filled = [[index for index, cell in enumerate(line[3:]) if cell != " "] for line in plot[:5]]
    assert all(now[0] <= following[0] for now, following in pairwise(filled))


def test_marks_are_where_their_numbers_are() -> None:
    plot = text_plot(FALLING, [(0, 4.0), (100, 0.0)], width=30, height=5)
    assert plot[0][3] == "●" and plot[4][-1] == "●"


@pytest.mark.parametrize("width", [12, 40, 60, 100])
@pytest.mark.parametrize("height", [1, 2, 8])
def test_it_fits(width: int, height: int) -> None:
    rough = [(step, 1e5 * math.sin(step)) for step in range(1000)]
    for unicode in (True, False):
        plot = text_plot(rough, rough[::100], width, height, unicode)
        assert len(plot) in (0, height + 1) and (len(plot) or width < 20)
        assert all(len(line) < width for line in plot)
        assert unicode or "".join(plot).isascii()


def test_what_makes_no_curve() -> None:
    assert text_plot([], [], 60, 8) == [] == text_plot([(3, 1.0)], [(3, 2.0)], 60, 8)
    broken = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 1.0)]
    assert len(text_plot(broken, [], 60, 8)) == 9, "a flat one without what is not finite"
