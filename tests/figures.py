"""Small figures to compare, tabulate and draw, and what is in a picture of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.evaluate.comparison import OURS
from pipeline.evaluate.depth import Baseline, DepthCurve
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import StoppingPoint

RESULT = {"val_loss": 3.0, "val_bpb": 1.5, "perplexity": 20.1, "train_loss": 2.9}


def evaluation(nats: float) -> Evaluation:
    return Evaluation(nats, tokens=100, bytes=250)


def curve_of(*nats: float, trained_depth: int | None = None, name: str = "model") -> DepthCurve:
    points = {depth: evaluation(value) for depth, value in enumerate(nats, start=1)}
    return DepthCurve(name, "layers applied", points, trained_depth or len(points))


CURVE = curve_of(400.0, 250.0, 200.0)
STOPS = replace(
    CURVE,
    stopping=[
        StoppingPoint(0.2, 0.5, evaluation(500.0)),
        StoppingPoint(0.5, 1.75, evaluation(230.0)),
        StoppingPoint(0.7, 2.5, evaluation(205.0)),
    ],
    threshold=0.5,
)
BASELINES = [Baseline("uniform", 4.2), Baseline("bigram", 2.5)]


def results() -> list[dict[str, Any]]:
    """The figures of a trained model, of other models, and of one that was evaluated on another text."""
    return [
        {"data": "here", **RESULT, **values}
        for values in (
            {"val_bpb": 1.2, "params": 1234567, "tokens": 10**6},  # tokens of training
            {"name": "gpt2", "val_bpb": 1.1, "params": 124439808, "tokens": 100},
            {"name": "bytes", "val_bpb": 1.3, "tokens": 400},
            {"name": "xz", "train_loss": None, "tokens": 101},
            {"name": "gpt2-xl", "val_bpb": 0.9, "tokens": 29, "first_tokens": 30},
            {"name": "char", "val_bpb": 1.4, "tokens": 100, "first_tokens": 30},
            {"name": OURS, "val_bpb": 1.0, "tokens": 29, "first_tokens": 30},
            {"name": "elsewhere", "data": "there", "tokens": 100},
        )
    ]


def axes_of(draw: Callable[[], object]) -> list[Axes]:
    """The axes of the picture that `draw` saves."""
    figures: list[Figure] = []
    with pytest.MonkeyPatch.context() as patched:
        close = pyplot.close
        patched.setattr(pyplot, "close", figures.append)
        draw()
    (figure,) = figures
    close(figure)
    return figure.axes


def texts_in(axes: Axes) -> list[str]:
    """The labels and notes in the axes, each on one line."""
    return [" ".join(text.get_text().split()) for text in axes.texts]


def data(line: Line2D) -> tuple[list[float], list[float]]:
    """The x and the y of a line's points."""
    xs, ys = np.asarray(line.get_xydata()).T.tolist()
    return xs, ys


def levels(axes: Axes) -> list[float]:
    """The heights of the horizontal lines, in order."""
    lines = (data(line)[1] for line in axes.lines if line.get_linestyle() == "--")
    return sorted(ys[0] for ys in lines if len(set(ys)) == 1)
