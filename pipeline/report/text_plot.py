"""Curves in characters, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]  # (x, y) with x ascending
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column


def text_plot(line: Points, marks: Points, width: int, height: int, unicode: bool = True) -> list[str]:
    """Lines of less than `width` characters: a curve of dots, marks upon it, and the limits of both axes.

    `height` is the number of lines without the one below the curve. Points that are not finite are left out;
    without two different x there is no curve, and the list is empty.
    """
    line, marks = ([point for point in points if math.isfinite(point[1])] for points in (line, marks))
    every = [*line, *marks]
    left, right = min((x for x, _ in every), default=0.0), max((x for x, _ in every), default=0.0)
    if left == right:
        return []
    low, high = min(y for _, y in every), max(y for _, y in every)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 1
    columns = width - margin - 2
    if columns < 4:
        return []
    across, up = (2 * columns - 1) / (right - left), (4 * height - 1) / ((high - low) or 1.0)
    cells = [[0] * columns for _ in range(height)]
    for column, row in _between([((x - left) * across, (high - y) * up) for x, y in line]):
        cells[row // 4][column // 2] |= DOTS[row % 4][column % 2]
    rows = [[_dots(cell, unicode) for cell in line_of_cells] for line_of_cells in cells]
    for x, y in marks:
        rows[round((high - y) * up) // 4][round((x - left) * across) // 2] = "●" if unicode else "o"
    axis = ("│", "└", "─") if unicode else ("|", "+", "-")
    names = [labels[0], *[""] * (height - 2), labels[1]] if height > 1 else labels[:1]
    found = [f"{name:>{margin - 1}} {axis[0]}{''.join(row)}" for name, row in zip(names, rows, strict=True)]
    steps = f"{left:,.0f}", f"{right:,.0f}"
    rule = axis[2] * max(1, columns - len(steps[0]) - len(steps[1]) - 2)
    return [*found, f"{'':{margin}}{axis[1]}{steps[0]} {rule} {steps[1]}"[: width - 1]]


def _between(points: Sequence[tuple[float, float]]) -> Iterable[tuple[int, int]]:
    """The dots on straight lines from each point to the next."""
    for x, y in points[:1]:
        yield round(x), round(y)
    for (x, y), (next_x, next_y) in pairwise(points):
        steps = max(1, math.ceil(max(abs(next_x - x), abs(next_y - y))))
        for step in range(1, steps + 1):
            yield round(x + (next_x - x) * step / steps), round(y + (next_y - y) * step / steps)


def _dots(cell: int, unicode: bool) -> str:
    if unicode:
        return chr(0x2800 + cell) if cell else " "
    return "." if cell else " "
