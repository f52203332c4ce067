"""The model and its baselines: the right rows, with the right figures."""

from __future__ import annotations

from pipeline.evaluate.comparison import OURS, rows
from tests.figures import results


def test_rows_are_of_the_active_text_only_and_know_their_tokens() -> None:
    found = rows(results(), "here", 100, {"gpt2": 3.12, "gpt2-xl": 2.54})
    names = [OURS, "gpt2", "bytes", "xz", "gpt2-xl", "char", OURS]
    assert [row.name for row in found] == names
    assert [row.name for row in found if not row.same_tokens] == ["bytes", "char"]
    assert [row.published for row in found] == [None, 3.12, None, None, 2.54, None, None]
    assert [row.first_tokens for row in found] == [None] * 4 + [30] * 3
