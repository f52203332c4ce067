"""The depth curve: a model's validation loss after each of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

from pipeline.config.params import Params
from pipeline.evaluate.at_depth import at_depth
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import (
    StoppingPoint,
    evaluate_by_depth,
    evaluate_stopping,
    shown_windows,
    windows_at_once,
)
from pipeline.model.gpt import GPT
from pipeline.model.recurrence import Recurrence
from pipeline.tokens.batches import check_fits
from pipeline.tokens.shards import open_split, open_tokenizer


@dataclass(frozen=True)
class Baseline:
    """A horizontal line in the picture. It is in bits per byte, because its tokenizer may be another one."""

    name: str
    bits_per_byte: float

    def loss_per_token_of(self, evaluation: Evaluation) -> float:
        """The baseline's loss converted to nats per token of the tokenizer used for `evaluation`."""
        return self.bits_per_byte * math.log(2) * evaluation.bytes / evaluation.tokens


@dataclass(frozen=True)
class DepthCurve:
    """Evaluations of a model after 1, 2, … steps; its default is `trained_depth` steps.

    On the curve, every token takes every step. For a model with learned stopping, `stopping` has the results
    at several thresholds, in ascending order. A result below the curve means that the model distributes its
    steps well over the tokens. `threshold` is the model's own, or None. If this is the mean of several
    curves, `seeds` has them.
    """

    name: str
    unit: str  # what one step is
    points: dict[int, Evaluation]
    trained_depth: int
    stopping: Sequence[StoppingPoint] = ()
    threshold: float | None = None
    seeds: Sequence[DepthCurve] = ()

    @property
    def own_stopping(self) -> StoppingPoint | None:
        """The result at the model's own threshold, if it has one."""
        return next((point for point in self.stopping if point.threshold == self.threshold), None)

    @property
    def final(self) -> Evaluation:
        """The evaluation of the model with its default depth and its own threshold."""
        return self.points[self.trained_depth] if self.own_stopping is None else self.own_stopping.evaluation


def mean_curve(curves: Sequence[DepthCurve]) -> DepthCurve:
    """The mean of curves of models that differ in their seeds only, evaluated on the same tokens."""
    first = curves[0]
    points = {depth: _mean([curve.points[depth] for curve in curves]) for depth in first.points}
    stopping = [
        StoppingPoint(
            each[0].threshold, mean(point.mean_depth for point in each), _mean([p.evaluation for p in each])
        )
        for each in zip(*(curve.stopping for curve in curves), strict=True)
    ]
    return replace(first, points=points, stopping=stopping, seeds=tuple(curves))


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    return replace(evaluations[0], nats=mean(evaluation.nats for evaluation in evaluations))


def measure(name: str, model: GPT, params: Params, tokens_folder: Path, device: torch.device) -> DepthCurve:
    """Measure a model's depth curve on the validation split, or its first `params.depth.eval_iters` batches.

    Raises UserError if the split is shorter than one of the model's windows, or the model has no loop that
    could go to `params.depth.max`.
    """
    params.depth.check_loop(model.depth if isinstance(model.trunk, Recurrence) else None)
    val, token_bytes = open_split(tokens_folder, "val"), open_tokenizer(tokens_folder).token_bytes
    check_fits(len(val), model.block_size, "val")
    iters = params.depth.eval_iters
    limit = None if iters is None else iters * params.train.batch_size
    arguments = (val, model.block_size, windows_at_once(model, device), limit)

    reaching = model if params.depth.max is None else at_depth(model, params.depth.max)
    points = evaluate_by_depth(reaching, shown_windows(f"{name} by depth", *arguments), token_bytes, device)
    curve = DepthCurve(name, model.trunk.unit, points, model.depth)
    if model.stopping is None:
        return curve
    own = model.stopping.threshold
    thresholds = sorted({*params.depth.stopping_thresholds, *([] if own is None else [own])})
    if not thresholds:
        return curve
    stopping = evaluate_stopping(
        model, shown_windows(f"{name} by threshold", *arguments), token_bytes, device, thresholds
    )
    return replace(curve, stopping=stopping, threshold=own)
