"""The picture of losses while training: what matters is in it, and the rest is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes

from pipeline.report.loss_curve import draw_losses
from pipeline.track.tracker import Row
from tests.figures import axes_of, data, levels, texts_in

ROWS: list[Row] = [
    {"step": 0, "tokens": 0, "val_loss": 8.0},
    *({"step": 10 * n, "tokens": 5000 * n, "train_loss": 5.0 - 0.2 * n} for n in range(1, 10)),
    {"step": 100, "tokens": 50_000, "train_loss": 2.8, "val_loss": 3.1},
]
BASELINES = {"uniform": 8.1, "unigram": 6.0, "bigram": 3.5, "trigram": 3.0}


def axes_for(path: Path, rows: list[Row] = ROWS, baselines: dict[str, float] = BASELINES) -> list[Axes]:
    return axes_of(lambda: draw_losses(path, rows, baselines, "tiny"))


def test_losses_and_the_baselines_among_them_are_drawn_with_their_names(tmp_path: Path) -> None:
    (axes,) = axes_for(tmp_path / "results" / "loss.png")
    low, high = axes.get_ylim()
    assert 2.4 < low < 2.8 and 4.8 < high < 5.5, "without the loss before training"
    assert levels(axes) == [3.0, 3.5]
    assert set(texts_in(axes)) == {"bigram 3.500", "trigram 3.000", "training 2.800", "validation 3.100"}
    assert axes.get_title().splitlines() == ["tiny", "above this picture: unigram 6.000, uniform 8.100"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step, of 500 tokens", "loss (nats per token)")


def test_a_run_that_only_evaluated_has_a_picture(tmp_path: Path) -> None:
    (axes,) = axes_for(tmp_path / "loss.png", ROWS[:1], {})
    assert texts_in(axes) == ["validation 8.000"]


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_losses(tmp_path / name, ROWS, BASELINES, "tiny")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_zero_shot_accuracies_are_a_panel_of_their_own(tmp_path: Path) -> None:
    rows: list[Row] = [*ROWS[:-1], {**ROWS[-1], "hellaswag_accuracy": 0.31, "lambada_accuracy": 0.2}]
    _, tasks = axes_for(tmp_path / "loss.png", rows)
    assert tasks.get_ylabel() == "zero-shot accuracy (%)"
    assert texts_in(tasks) == ["hellaswag 31.0 %", "lambada 20.0 %"]
    assert [data(line)[1][-1] for line in tasks.lines] == pytest.approx([31.0, 20.0])
