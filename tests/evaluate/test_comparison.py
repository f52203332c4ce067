"""The model and its baselines: the right rows, with the right figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluate.comparison import OURS, read_rows
from pipeline.storage.files import write_json
from tests.figures import RESULT, write_results


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_results(tmp_path)


def test_rows_are_of_the_active_text_only_and_know_their_tokens(files: list[Path]) -> None:
    rows = {row.name: row for row in read_rows(files, "here", 100, {"gpt2": 3.12, "gpt2-xl": 2.54})}
    assert list(rows) == [OURS, "gpt2", "bytes", "xz"]
    assert [row.name for row in rows.values() if not row.same_tokens] == ["bytes"]
    assert [row.published for row in rows.values()] == [None, 3.12, None, None]


def test_the_figures_are_those_of_the_model_that_was_kept(tmp_path: Path) -> None:
    metrics = {"data": "here", **RESULT, "saved": "best", "best_val_loss": 2.5, "best_val_bpb": 1.25}
    write_json(tmp_path / "metrics.json", {**metrics, "best_step": 7, "steps": 9})
    (row,) = read_rows([tmp_path / "metrics.json"], "here", 100, {})
    assert (row.val_loss, row.val_bpb, row.train_loss) == (2.5, 1.25, None)
    assert row.perplexity == pytest.approx(12.18, abs=0.01)
