"""Tables that read well on a terminal too."""

from __future__ import annotations

from pipeline.report.tables import markdown_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    table = markdown_table([("", "b"), ("long", "1"), ("x", "22")], "<>")
    assert table.splitlines() == ["|      |  b |", "| ---- | -: |", "| long |  1 |", "| x    | 22 |"]
