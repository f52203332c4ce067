"""The depth curve as a table and as a picture."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from pipeline.config.errors import UserError
from pipeline.evaluate.depth import Baseline, DepthCurve
from pipeline.evaluate.loss import StoppingPoint
from pipeline.report.depth_curve import (
    draw,
    write_stopping,
    write_table,
    write_tables,
)
from pipeline.report.png import drawn_from
from tests.family import THRESHOLD
from tests.figures import BASELINES, CURVE, STOPS, curve_of, evaluation

CPU = torch.device("cpu")
OWN = THRESHOLD["learned_stopping_threshold"]


def drawn(path: Path, *curves: DepthCurve, baselines: list[Baseline] = BASELINES) -> np.ndarray:
    """The picture's pixels, (height, width, channels)."""
    draw(path, curves or [CURVE], baselines, "tiny (char tokens)")
    return matplotlib.image.imread(path)


def texts_of(path: Path, *curves: DepthCurve) -> list[str]:
    """The axes' labels, the legend and the notes of the picture."""
    with pytest.MonkeyPatch.context() as patched:
        figures: list[Figure] = []
        close = pyplot.close
        patched.setattr(pyplot, "close", figures.append)
        draw(path, curves, [], "tiny (char tokens)")
    (axes,) = figures[0].axes
    close(figures[0])
    _, legend = axes.get_legend_handles_labels()
    return [axes.get_xlabel(), *legend, *[text.get_text() for text in axes.texts]]


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "results" / "depth.csv"
    write_table(path, CURVE)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val_loss"]) for row in rows] == [4.0, 2.5, 2.0]
    for row, point in zip(rows, CURVE.points.values(), strict=True):
        assert list(row) == ["depth", "val_loss", "perplexity", "val_bpb"]
        assert float(row["perplexity"]) == pytest.approx(math.exp(point.nats / 100), rel=1e-4)
        assert float(row["val_bpb"]) == pytest.approx(point.nats / math.log(2) / 250, abs=1e-6)
    assert b"\r" not in path.read_bytes()


def test_table_of_several_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    write_tables(path, [CURVE, curve_of(300.0, 100.0, name="other")])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["variant", "depth", "val_loss", "perplexity", "val_bpb"]
    found = [(row["variant"], row["depth"], float(row["val_loss"])) for row in rows]
    assert found == [
        ("model", "1", 4),
        ("model", "2", 2.5),
        ("model", "3", 2),
        ("other", "1", 3),
        ("other", "2", 1),
    ]


def test_stopping_table(tmp_path: Path) -> None:
    path = tmp_path / "stopping.csv"
    write_stopping(path, STOPS)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["threshold", "mean_depth", "val_loss", "perplexity", "val_bpb"]
    assert [row["threshold"] for row in rows] == ["0.2", "0.5", "0.7"]
    assert [float(row["mean_depth"]) for row in rows] == [0.5, 1.75, 2.5]
    assert [float(row["val_loss"]) for row in rows] == [5.0, 2.3, 2.05]


def test_stopping_table_of_a_model_that_does_not_stop_is_its_header(tmp_path: Path) -> None:
    write_stopping(tmp_path / "stopping.csv", CURVE)
    assert (tmp_path / "stopping.csv").read_text() == "threshold,mean_depth,val_loss,perplexity,val_bpb\n"


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


def test_picture_shows_curves_baselines_and_stopping(tmp_path: Path) -> None:
    pictures = [
        drawn(tmp_path / "a.png", *curves, baselines=baselines)
        for curves, baselines in (
            ([CURVE], BASELINES),
            ([CURVE], BASELINES[:1]),
            ([curve_of(400.0, 250.0, 230.0)], BASELINES),
            ([replace(CURVE, trained_depth=2)], BASELINES),
            ([STOPS], BASELINES),
            ([replace(STOPS, stopping=STOPS.stopping[:2])], BASELINES),
            ([CURVE, curve_of(300.0, 100.0, name="other")], BASELINES),
        )
    ]
    for index, picture in enumerate(pictures):
        assert not any(np.array_equal(picture, other) for other in pictures[:index])


def test_picture_says_what_the_steps_are_and_what_the_trained_depth_reaches(tmp_path: Path) -> None:
    curve = replace(CURVE, unit="steps of the shared block", trained_depth=2)
    x_label, *texts = texts_of(tmp_path / "a.png", curve)
    assert x_label == "depth (steps of the shared block)"
    assert texts == ["model: 2.500 at depth 2", "trained depth", "4.000", "2.500", "2.000"]
    x_label, *texts = texts_of(tmp_path / "a.png", CURVE)
    assert x_label == "depth (layers applied)"
    assert texts[0] == "model: 2.000 at depth 3" and "trained depth" not in texts
    x_label, *texts = texts_of(tmp_path / "a.png", CURVE, replace(curve, name="loop"))
    assert x_label == "depth (layers applied, or steps of the shared block)"
    assert texts == ["model: 2.000 at depth 3", "loop: 2.500 at depth 2", "trained depth"]


def test_picture_names_the_thresholds(tmp_path: Path) -> None:
    hidden = StoppingPoint(0.9, 2.51, evaluation(204.0))
    curve = replace(STOPS, stopping=[*STOPS.stopping, hidden])
    assert texts_of(tmp_path / "a.png", curve)[1:] == [
        "model, never stopping: 2.000 at depth 3",
        "model, stopping by threshold",
        "model, stopping above 0.5: 2.300 at mean depth 1.75",
        *("0.2", "0.5", "0.7, 0.9"),
    ]
    assert texts_of(tmp_path / "a.png", replace(curve, threshold=None))[1:3] == [
        "model: 2.000 at depth 3",
        "model, stopping by threshold",
    ]


@pytest.mark.parametrize(
    ("depth", "num_baselines", "num_curves"), [(1, 0, 1), (1, 1, 1), (40, 12, 1), (2, 0, 25)]
)
def test_picture_of_any_size_of_curve(
    tmp_path: Path, depth: int, num_baselines: int, num_curves: int
) -> None:
    curves = [
        curve_of(*(500.0 - step for step in range(depth)), name=f"v{index}") for index in range(num_curves)
    ]
    baselines = [Baseline(f"models-{number}", 3 + number / 10) for number in range(num_baselines)]
    assert drawn(tmp_path / "a.png", *curves, baselines=baselines).ndim == 3


def test_picture_of_a_model_that_fails_beyond_its_depth(tmp_path: Path) -> None:
    curve = curve_of(250.0, math.inf, math.nan, trained_depth=1)
    assert drawn(tmp_path / "a.png", curve).ndim == 3
    stopping = [StoppingPoint(0.5, 0.5, evaluation(math.nan)), StoppingPoint(0.9, 0.9, evaluation(math.inf))]
    assert drawn(tmp_path / "a.png", replace(curve, stopping=stopping, threshold=0.5)).ndim == 3


def test_the_picture_says_from_which_weights_it_was_drawn(tmp_path: Path) -> None:
    path, again = tmp_path / "depth.png", tmp_path / "again.png"
    assert drawn_from(path) is None
    for picture in (path, again):
        draw(picture, [CURVE], BASELINES, "tiny", 64 * "a")
    assert drawn_from(path) == 64 * "a" and path.read_bytes() == again.read_bytes()
    draw(path, [CURVE], BASELINES, "tiny")
    assert drawn_from(path) is None
    for damaged in (b"no picture", path.read_bytes()[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a damaged picture"):
            drawn_from(path)
