"""Tables in Markdown, as plain text and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.files import write_text


def markdown_table(cells: Sequence[Sequence[str]], alignments: str, padded: bool = True) -> str:
    """Rows of cells, with the header first, as a Markdown table.

    `alignments` has a `<` (left) or `>` (right) for each column. If padded, it is readable on a terminal too.
    """
    widths = [max(map(len, column)) if padded else 3 for column in zip(*cells, strict=True)]
    rule = [
        "-" * width if to == "<" else "-" * (width - 1) + ":"
        for width, to in zip(widths, alignments, strict=True)
    ]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(f"| {' | '.join(_aligned(line, alignments, widths, padded))} |" for line in lines)


def plain_table(cells: Sequence[Sequence[str]], alignments: str) -> str:
    """Rows of cells, with the header first, as columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(_aligned(line, alignments, widths)).rstrip() for line in cells)


def _aligned(
    line: Sequence[str], alignments: str, widths: Sequence[int], padded: bool = True
) -> Sequence[str]:
    return list(map("{:{}{}}".format, line, alignments, widths)) if padded else line


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
