"""Every part of the table on tiny models, and how it is judged; no figure of speed or memory is asserted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.interop import (
    WINDOWS,
    Row,
    check_space,
    first_windows,
    hellaswag_rows,
    logits_rows,
    loss_row,
    markdown,
    memory_row,
    perplexity_row,
    reduced,
)
from bench.parity import num_params
from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.evaluate.tasks import HellaSwag, WikiText2
from pipeline.storage.files import write_text
from tests import tiny, zeroshot
from tests.conftest import Ended

CONFIG = tiny.config(n_layer=2, vocab_size=zeroshot.bpe().vocab_size, block_size=zeroshot.BLOCK_SIZE)


def test_bars_pass_and_miss() -> None:
    assert Row("difference", 1e-5, 1e-5).met
    assert not Row("difference", 1e-9, 0.0).met
    assert Row("ratio", 2.0, 2.0, at_least=True).met
    assert not Row("ratio", 1.99, 2.0, at_least=True).met
    assert not Row("not a number", float("nan"), 1.0).met


def test_the_table_is_markdown() -> None:
    rows = [
        Row("exact", 0.0, 0.0),
        Row("pace", 1.5, 2.0, at_least=True, reference=2.0, here=3.0, number="{:.2f}"),
    ]
    lines = markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["exact", "", "", "0", "≤ 0", "pass"]
    assert cells[3] == ["pace", "2.00", "3.00", "1.5", "≥ 2", "MISS"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_reduced_shape_keeps_layers_and_heads(name: str) -> None:
    config = PUBLISHED[name].config
    small = reduced(config)
    assert (small.n_layer, small.n_head, small.vocab_size) == (config.n_layer, config.n_head, 50257)
    assert num_params(small) < num_params(config) / 10


def test_logits_of_every_shape_and_export() -> None:
    rows = {row.title: row for row in logits_rows({"tiny": tiny.config()})}
    assert list(rows) == [
        "logits of tiny, gelu_new: difference",
        "logits of tiny, gelu: difference",
        "logits of tiny, exported and read here: difference",
        "logits of tiny, exported and read by transformers: difference",
    ]
    assert all(row.met for row in rows.values())


def test_loss_and_perplexity(tmp_path: Path) -> None:
    tokenizer = zeroshot.bpe()
    windows = torch.arange(48).view(3, 16) % CONFIG.vocab_size
    loss = loss_row(CONFIG, windows, tokenizer.token_bytes)
    assert loss.met and loss.reference == pytest.approx(loss.here, abs=1e-5)

    write_text(tmp_path / "wiki.test.raw", zeroshot.WIKITEXT)
    text = WikiText2(tmp_path / "wiki.test.raw", tokenizer, CONFIG.block_size, None)
    perplexity = perplexity_row(CONFIG, text, tokenizer)
    assert perplexity.here == pytest.approx(perplexity.reference, rel=1e-2)


def test_hellaswag(tmp_path: Path) -> None:
    path = zeroshot.write_rows(tmp_path / "hellaswag.jsonl", zeroshot.HELLASWAG)
    pace, *figures = hellaswag_rows(
        CONFIG, HellaSwag(path, zeroshot.bpe(), CONFIG.block_size, None), zeroshot.bpe()
    )
    assert pace.measured > 0 and pace.reference and pace.here
    assert len(figures) == 2 and all(row.measured == 0 for row in figures)


def test_memory_is_that_of_programs_that_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)
    row = memory_row(tiny.config())
    assert row.reference and row.here
    assert row.measured == pytest.approx(row.here * 1e9 / (4 * num_params(tiny.config())))


def test_windows_are_the_first_ones() -> None:
    assert first_windows(list(range(11)), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(first_windows([0] * 1000, 2)) == WINDOWS
    with pytest.raises(UserError, match=r"--wikitext: its 3 tokens are less than a window of 4; name"):
        first_windows([0] * 3, 4)


def test_a_disk_that_is_too_small_is_named(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(UserError, match=r"GB are free, and a model needs 1000000000\.0; set TMPDIR"):
        check_space(tmp_path, 10**18)


def test_a_file_that_is_missing_is_said_before_anything_runs(
    stage: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.interop.gpt2_tokenizer", zeroshot.bpe)
    ended = stage("interop", "--skip-memory", "--hellaswag", "nowhere.jsonl")
    assert ended.status == 2 and ended.out == ""
    assert ended.err.startswith("error: hellaswag: ") and "nowhere.jsonl" in ended.err
    assert ended.err.count("\n") == 1 and not list(tmp_path.iterdir())
