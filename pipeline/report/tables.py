"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(cells: Sequence[Sequence[str]], alignments: str) -> str:
    """Lines of cells, the first of them the header, as a table that reads well on a terminal too.

    `alignments` has a `<` or `>` for each column.
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
