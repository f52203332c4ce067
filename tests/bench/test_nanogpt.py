"""The figures are read from the programs' own words, and judged as the table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.harness import FLAGS, PRESET, nanogpt_steps, steps_here
from bench.nanogpt import MAX_ITERS, Figures, check_clone, markdown, nanogpt_val_loss, summarize
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.presets import compose

ROOT = Path(__file__).parents[2]

NANOGPT_OUTPUT = """\
number of parameters: 0.80M
step 0: train loss 4.1676, val loss 4.1649
iter 0: loss 4.1828, time 700.50ms, mfu -100.00%
iter 1: loss 4.1373, time 30.25ms, mfu -100.00%
step 2: train loss 4.1306, val loss 4.1214
saving checkpoint to out-shakespeare-char
"""

LOG = """\
step,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,mfu
0,0,,4.1,1e-05,,,
1,768,4.2,,1e-05,2.1,7680,0.1
2,1536,4.1,4.0,2e-05,2.0,38400,0.5
"""

FIGURES = Figures(
    train_seconds=60.0,
    step_seconds=0.03,
    train_peak_bytes=400e6,
    sample_seconds=20.0,
    val_loss=1.89,
    saved_val_loss=1.9,
)


def test_reads_what_nanogpt_prints() -> None:
    assert nanogpt_steps(NANOGPT_OUTPUT) == [0.7005, 0.03025]
    assert nanogpt_val_loss(NANOGPT_OUTPUT) == 4.1214


def test_reads_the_log() -> None:
    assert steps_here(LOG.splitlines()) == pytest.approx([0.1, 0.02])


def test_both_programs_get_the_same_configuration(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(compose(PRESET, ROOT / "presets"))
    params = load_params(path=path).model_dump()
    ours = params["model"] | params["train"] | params["log"]
    assert {name: ours[name] for name in FLAGS} == FLAGS
    assert ours["max_iters"] == MAX_ITERS


def test_ratios_are_those_of_neighbouring_runs() -> None:
    """A machine that slows down between the runs does not move the ratio, though it moves the medians."""
    pairs = [
        (replace(FIGURES, train_seconds=seconds), replace(FIGURES, train_seconds=seconds * ratio))
        for seconds, ratio in ((50, 0.5), (100, 0.9), (200, 0.8))
    ]
    row = summarize(pairs, full_length=True)[0]
    assert (row.nanogpt, row.here) == pytest.approx((100, 90))
    assert row.ratio == pytest.approx(0.8)
    assert row.met


def test_bars_pass_and_miss() -> None:
    here = replace(FIGURES, sample_seconds=8.0, val_loss=1.91)
    met = {row.quantity.field: row.met for row in summarize([(FIGURES, here)], full_length=True)}
    assert met == {
        "train_seconds": True,
        "step_seconds": True,
        "train_peak_bytes": True,
        "sample_seconds": False,
        "val_loss": False,
        "saved_val_loss": None,
    }
    shorter = {row.quantity.field: row.met for row in summarize([(FIGURES, here)], full_length=False)}
    assert shorter == met | {"val_loss": None}


def test_the_table_is_markdown() -> None:
    here = replace(FIGURES, train_seconds=30.0, sample_seconds=8.0)
    lines = markdown(summarize([(FIGURES, here)], full_length=True)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines}) == 1
    assert rows[2] == ["training, whole process", "60.0 s", "30.0 s", "0.500", "ratio ≤ 1.00", "pass"]
    assert rows[3][1] == "30.00 ms"
    assert rows[5][3:] == ["0.400", "ratio ≤ 0.35", "MISS"]
    assert rows[6][1:] == ["1.8900", "1.8900", "1.000", "≤ 1.90", "pass"]


def test_a_folder_that_is_no_clone_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    with pytest.raises(UserError, match=r"not a clone of nanoGPT, it has no model\.py"):
        check_clone(tmp_path)
