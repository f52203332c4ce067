"""The depth curve as a table and as a picture."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.text import Text

from pipeline.config.errors import UserError
from pipeline.evaluate.depth import Baseline, DepthCurve
from pipeline.evaluate.loss import StoppingPoint
from pipeline.report.depth_curve import (
    draw,
    write_lines,
    write_stopping,
    write_table,
    write_tables,
)
from pipeline.report.png import drawn_from
from tests.family import THRESHOLD
from tests.figures import BASELINES, CURVE, STOPS, axes_of, curve_of, data, evaluation, levels, texts_in

CPU = torch.device("cpu")
OWN = THRESHOLD["learned_stopping_threshold"]


def drawn(path: Path, curve: DepthCurve = CURVE, baselines: list[Baseline] = BASELINES) -> np.ndarray:
    """The picture's pixels, (height, width, channels)."""
    draw(path, curve, baselines, "tiny (char tokens)")
    return matplotlib.image.imread(path)


def axes_for(path: Path, curve: DepthCurve = CURVE, baselines: list[Baseline] = BASELINES) -> Axes:
    (axes,) = axes_of(lambda: draw(path, curve, baselines, "tiny"))
    return axes


def baselines_at(**losses: float) -> list[Baseline]:
    """Baselines with these losses in nats per token of the curves here."""
    return [Baseline(name, loss * 100 / 250 / math.log(2)) for name, loss in losses.items()]


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


def test_the_axis_shows_the_model_and_the_baselines_near_it(tmp_path: Path) -> None:
    axes = axes_for(tmp_path / "a.png", CURVE, baselines_at(bigram=2.6, near=3.9, unigram=6.0, uniform=12.0))
    low, high = axes.get_ylim()
    assert 1.5 < low < 2.0 and 4.0 < high < 4.5, "the curve goes from 4 to 2"
    assert levels(axes) == pytest.approx([2.6, 3.9])
    assert {"bigram 2.600", "near 3.900", "model: 2.000 at depth 3"} <= set(texts_in(axes))
    assert axes.get_title().splitlines() == ["tiny", "above this picture: unigram 6.000, uniform 12.000"]


def test_the_best_baseline_is_in_the_picture_however_far_the_model_is_below_it(tmp_path: Path) -> None:
    axes = axes_for(tmp_path / "a.png", curve_of(210.0, 200.0), baselines_at(bigram=5.0, uniform=9.0))
    assert levels(axes) == pytest.approx([5.0])
    assert axes.get_title().endswith("above this picture: uniform 9.000")


def test_a_model_that_fails_beyond_its_depth_leaves_the_picture(tmp_path: Path) -> None:
    curve = curve_of(400.0, 250.0, 200.0, 5000.0, math.nan, trained_depth=3)
    axes = axes_for(tmp_path / "a.png", curve, baselines_at(uniform=4.5))
    assert axes.get_ylim()[1] < 5
    assert "above this picture: model at depth 4 50.000, model at depth 5 nan" in axes.get_title()


def test_every_label_is_within_the_picture_and_none_upon_another(tmp_path: Path) -> None:
    many = baselines_at(**{f"model-{number}": 2.5 + number / 1000 for number in range(9)})
    axes = axes_for(tmp_path / "a.png", CURVE, many)
    assert axes.figure is not None
    width, height = axes.figure.bbox.width * 1.5, axes.figure.bbox.height * 1.5  # saved with more dots
    beside = [text for text in axes.texts if text.get_text().startswith("model")]
    boxes = sorted((Text.get_window_extent(text) for text in beside), key=lambda box: box.y0)
    assert len(boxes) == 10
    assert all(box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert all(one.y1 <= other.y0 + 2 for one, other in pairwise(boxes))


def test_picture_says_what_the_steps_are_and_marks_the_trained_depth(tmp_path: Path) -> None:
    curve = replace(CURVE, unit="steps of the shared block", trained_depth=2)
    axes = axes_for(tmp_path / "a.png", curve, [])
    assert axes.get_xlabel() == "depth (steps of the shared block)"
    assert axes.get_ylabel() == "validation loss (nats per token)"
    assert set(texts_in(axes)) == {"model: 2.500 at depth 2", "trained depth: 2", "4.000", "2.500", "2.000"}
    assert [2, 2] in [data(line)[0] for line in axes.lines]
    axes = axes_for(tmp_path / "a.png", CURVE, [])
    assert axes.get_xlabel() == "depth (layers applied)"
    assert set(texts_in(axes)) == {"model: 2.000 at depth 3", "4.000", "2.500", "2.000"}


def test_picture_names_the_thresholds(tmp_path: Path) -> None:
    hidden = StoppingPoint(0.9, 2.51, evaluation(205.0))
    curve = replace(STOPS, stopping=[*STOPS.stopping, hidden])
    axes = axes_for(tmp_path / "a.png", curve, [])
    assert set(texts_in(axes)) == {"model, never stopping: 2.000 at depth 3", "0.5", "0.7, 0.9"}
    assert axes.get_title().endswith("above this picture: stopping above 0.2 5.000")
    _, legend = axes.get_legend_handles_labels()
    assert legend == [
        "stopping by threshold, at the mean depth",
        "stopping above 0.5: 2.300 at mean depth 1.75",
    ]
    axes = axes_for(tmp_path / "a.png", replace(curve, threshold=None), [])
    assert "model: 2.000 at depth 3" in texts_in(axes)
    assert len(axes.get_legend_handles_labels()[1]) == 1


def test_lines_for_dvc_go_from_one_end_of_each_axis_to_the_other(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    write_lines(path, {"bigram": 2.5, "xz": 3.0}, {"depth": (1, 4), "step": (0, 700)})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["baseline"], row["depth"], row["step"], row["label"]) for row in rows] == [
        ("bigram", "1", "0", ""),
        ("bigram", "4", "700", "bigram 2.500"),
        ("xz", "1", "0", ""),
        ("xz", "4", "700", "xz 3.000"),
    ]
    assert [float(row["val_loss"]) for row in rows] == [2.5, 2.5, 3.0, 3.0]


@pytest.mark.parametrize(("depth", "num_baselines"), [(1, 0), (1, 1), (40, 12)])
def test_picture_of_any_size_of_curve(tmp_path: Path, depth: int, num_baselines: int) -> None:
    curve = curve_of(*(500.0 - step for step in range(depth)))
    baselines = [Baseline(f"models-{number}", 3 + number / 10) for number in range(num_baselines)]
    assert drawn(tmp_path / "a.png", curve, baselines).ndim == 3


@pytest.mark.parametrize("depth", [1, 3, 48])
def test_the_axis_of_depths_has_no_depth_0(tmp_path: Path, depth: int) -> None:
    axes = axes_for(tmp_path / "a.png", curve_of(*(5 - step / 100 for step in range(depth))), [])
    left, right = axes.get_xlim()
    assert 0 < left < 1 and depth < right


def test_picture_of_a_model_that_fails_beyond_its_depth(tmp_path: Path) -> None:
    curve = curve_of(250.0, math.inf, math.nan, trained_depth=1)
    assert drawn(tmp_path / "a.png", curve).ndim == 3
    stopping = [StoppingPoint(0.5, 0.5, evaluation(math.nan)), StoppingPoint(0.9, 0.9, evaluation(math.inf))]
    assert drawn(tmp_path / "a.png", replace(curve, stopping=stopping, threshold=0.5)).ndim == 3


def test_the_picture_says_from_which_weights_it_was_drawn(tmp_path: Path) -> None:
    path, again = tmp_path / "depth.png", tmp_path / "again.png"
    assert drawn_from(path) is None
    for picture in (path, again):
        draw(picture, CURVE, BASELINES, "tiny", 64 * "a")
    assert drawn_from(path) == 64 * "a" and path.read_bytes() == again.read_bytes()
    draw(path, CURVE, BASELINES, "tiny")
    assert drawn_from(path) is None
    for damaged in (b"no picture", path.read_bytes()[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a damaged picture"):
            drawn_from(path)
