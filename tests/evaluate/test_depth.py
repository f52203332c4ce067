"""The depth curve as a table and as a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from pipeline.evaluate.depth import Baseline, DepthCurve, measure
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import StoppingPoint, evaluate
from pipeline.report.depth_curve import (
    draw,
)
from pipeline.tokens.batches import evaluation_windows
from pipeline.tokens.shards import open_split
from pipeline.tokens.tokenizers import load_tokenizer
from tests import tiny
from tests.family import RECURRENT, STOPPING, THRESHOLD

CPU = torch.device("cpu")
OWN = THRESHOLD["learned_stopping_threshold"]


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


def test_what_a_model_reaches_by_itself() -> None:
    assert CURVE.final.loss == 2.0
    assert replace(CURVE, trained_depth=2).final.loss == 2.5
    assert STOPS.final.loss == 2.3
    assert replace(STOPS, threshold=None).final.loss == 2.0


def test_a_stack_is_measured_through_its_layers(tiny_tokens: Path) -> None:
    model = tiny.model(vocab_size=load_tokenizer(tiny_tokens).vocab_size)
    curve = measure("dense", model, tiny.params("depth.eval_iters=2"), tiny_tokens, CPU)
    assert (curve.name, curve.unit, curve.trained_depth) == ("dense", "layers applied", 3)
    assert list(curve.points) == [1, 2, 3] and not curve.stopping
    assert curve.final.tokens == 2 * 4 * 8


@pytest.mark.parametrize(("changes", "expected"), [({}, [0.3, 0.9]), (THRESHOLD, [0.3, OWN, 0.9])])
def test_a_stopping_model_is_measured_at_its_own_threshold_too(
    tiny_tokens: Path, changes: dict[str, object], expected: list[float]
) -> None:
    tokenizer = load_tokenizer(tiny_tokens)
    config = {**RECURRENT, **STOPPING, **changes, "vocab_size": tokenizer.vocab_size}
    model = tiny.model(**config)
    params = tiny.params("depth.stopping_thresholds=[0.9, 0.3]")
    curve = measure("model", model, params, tiny_tokens, CPU)
    assert (curve.unit, curve.trained_depth) == ("steps of the shared block", 3)
    assert list(curve.points) == [1, 2, 3, 4, 5, 6]
    assert [point.threshold for point in curve.stopping] == expected
    windows = evaluation_windows(open_split(tiny_tokens, "val"), 8, batch_size=4)
    assert curve.final == evaluate(model, windows, tokenizer.token_bytes, CPU)


def test_no_thresholds_are_no_points(tiny_tokens: Path) -> None:
    vocab_size = load_tokenizer(tiny_tokens).vocab_size
    model = tiny.model(**{**RECURRENT, **STOPPING, "vocab_size": vocab_size})
    curve = measure("model", model, tiny.params("depth.stopping_thresholds=[]"), tiny_tokens, CPU)
    assert list(curve.points) == [1, 2, 3, 4, 5, 6] and not curve.stopping


def test_a_baseline_that_counts_other_tokens_is_drawn_at_the_same_bits_per_byte() -> None:
    """Half as many tokens of twice the loss are the same prediction of the same text."""
    other = Evaluation(nats=200.0, tokens=50, bytes=250)
    assert Baseline("other", other.bits_per_byte).loss_per_token_of(CURVE.final) == pytest.approx(2.0)
