"""The model and its baselines: the right rows, with the right figures."""

from __future__ import annotations

import pytest

from pipeline.evaluate.comparison import OURS, rows
from tests.figures import RESULT, results


def test_rows_are_of_the_active_text_only_and_know_their_tokens() -> None:
    found = rows(results(), "here", 100, {"gpt2": 3.12, "gpt2-xl": 2.54})
    assert [row.name for row in found] == [OURS, "gpt2", "bytes", "xz"]
    assert [row.name for row in found if not row.same_tokens] == ["bytes"]
    assert [row.published for row in found] == [None, 3.12, None, None]


def test_the_figures_are_those_of_the_model_that_was_kept() -> None:
    metrics = {"data": "here", **RESULT, "saved": "best", "best_val_loss": 2.5, "best_val_bpb": 1.25}
    (row,) = rows([{**metrics, "best_step": 7, "steps": 9}], "here", 100, {})
    assert (row.val_loss, row.val_bpb, row.train_loss) == (2.5, 1.25, None)
    assert row.perplexity == pytest.approx(12.18, abs=0.01)
