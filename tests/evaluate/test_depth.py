"""The depth curve as a table and as a picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from pipeline.evaluate.depth import Baseline, draw, write_table
from pipeline.evaluate.evaluation import Evaluation

CURVE = [Evaluation(nats=nats, tokens=100, bytes=250) for nats in (400.0, 250.0, 200.0)]
BASELINES = [Baseline("uniform", 4.2), Baseline("bigram", 2.5)]


def drawn(path: Path, curve: list[Evaluation] = CURVE, baselines: list[Baseline] = BASELINES) -> np.ndarray:
    """The picture's pixels, (height, width, channels)."""
    draw(path, curve, baselines, "tiny (char tokens)")
    return matplotlib.image.imread(path)


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "results" / "depth.csv"
    write_table(path, CURVE)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val_loss"]) for row in rows] == [4.0, 2.5, 2.0]
    for row, point in zip(rows, CURVE, strict=True):
        assert list(row) == ["depth", "val_loss", "perplexity", "val_bpb"]
        assert float(row["perplexity"]) == pytest.approx(math.exp(point.nats / 100), rel=1e-4)
        assert float(row["val_bpb"]) == pytest.approx(point.nats / math.log(2) / 250, abs=1e-6)
    assert b"\r" not in path.read_bytes()


def test_picture(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "results" / "depth.png")
    height, width = pixels.shape[:2]
    assert 400 < height < width < 3000
    assert 0.01 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.3  # lines and letters on white
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["depth.png"]


def test_picture_is_the_same_every_time(tmp_path: Path) -> None:
    drawn(tmp_path / "one.png")
    drawn(tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_picture_shows_curve_and_baselines(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "a.png")
    assert not np.array_equal(drawn(tmp_path / "b.png", baselines=BASELINES[:1]), pixels)
    other = [*CURVE[:2], Evaluation(nats=230.0, tokens=100, bytes=250)]
    assert not np.array_equal(drawn(tmp_path / "c.png", curve=other), pixels)


def test_a_baseline_that_counts_other_tokens_is_drawn_at_the_same_bits_per_byte() -> None:
    """Half as many tokens of twice the loss are the same prediction of the same text."""
    other = Evaluation(nats=200.0, tokens=50, bytes=250)
    assert Baseline("other", other.bits_per_byte).loss_per_token_of(CURVE[-1]) == pytest.approx(2.0)


@pytest.mark.parametrize(("depth", "num_baselines"), [(1, 0), (1, 1), (40, 12)])
def test_picture_of_any_size_of_curve(tmp_path: Path, depth: int, num_baselines: int) -> None:
    curve = [Evaluation(nats=500.0 - step, tokens=100, bytes=250) for step in range(depth)]
    baselines = [Baseline(f"models-{number}", 3 + number / 10) for number in range(num_baselines)]
    assert drawn(tmp_path / "a.png", curve, baselines).ndim == 3
