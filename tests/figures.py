"""Small figures to compare, tabulate and draw: depth curves, and results of a model and its baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
