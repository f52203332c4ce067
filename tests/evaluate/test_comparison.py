"""The table of the model and its baselines: the right rows, in order, in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluate.comparison import OURS, read_rows
from pipeline.storage.files import write_json

FIGURES = {"val_loss": 3.0, "val_bpb": 1.5, "perplexity": 20.1, "train_loss": 2.9}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    def written(stem: str, **values: Any) -> Path:
        path = tmp_path / f"{stem}.json"
        write_json(path, {"data": "here", **FIGURES, **values})
        return path

    return [
        written("metrics", val_bpb=1.2, params=1234567, tokens=10**6),  # tokens of training
        written("gpt2", name="gpt2", val_bpb=1.1, params=124439808, tokens=100),
        written("bytes", name="bytes", val_bpb=1.3, tokens=400),
        written("xz", name="xz", train_loss=None, tokens=101),
        written("elsewhere", name="elsewhere", data="there", tokens=100),
    ]


def test_rows_are_of_the_active_text_only_and_know_their_tokens(files: list[Path]) -> None:
    rows = {row.name: row for row in read_rows(files, "here", 100, {"gpt2": 3.12, "gpt2-xl": 2.54})}
    assert list(rows) == [OURS, "gpt2", "bytes", "xz"]
    assert [row.name for row in rows.values() if not row.same_tokens] == ["bytes"]
    assert [row.published for row in rows.values()] == [None, 3.12, None, None]


def test_the_figures_are_those_of_the_model_that_was_kept(tmp_path: Path) -> None:
    metrics = {"data": "here", **FIGURES, "saved": "best", "best_val_loss": 2.5, "best_val_bpb": 1.25}
    write_json(tmp_path / "metrics.json", {**metrics, "best_step": 7, "steps": 9})
    (row,) = read_rows([tmp_path / "metrics.json"], "here", 100, {})
    assert (row.val_loss, row.val_bpb, row.train_loss) == (2.5, 1.25, None)
    assert row.perplexity == pytest.approx(12.18, abs=0.01)
