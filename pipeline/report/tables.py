"""Tables in Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.files import write_text


def markdown_table(cells: Sequence[Sequence[str]], alignments: str) -> str:
    """Rows of cells, with the header first, as a Markdown table that is readable on a terminal too.

    `alignments` has a `<` (left) or `>` (right) for each column.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * width if to == "<" else "-" * (width - 1) + ":"
        for width, to in zip(widths, alignments, strict=True)
    ]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| " + " | ".join(map("{:{}{}}".format, line, alignments, widths)) + " |" for line in lines
    )


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
