"""The depth curve: what a model's validation loss is after each of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.config.params import Params
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import StoppingPoint, evaluate_by_depth, evaluate_stopping
from pipeline.model.gpt import GPT
from pipeline.tokens.batches import check_fits, count_batches, evaluation_windows
from pipeline.tokens.shards import open_split
from pipeline.tokens.tokenizers import load_tokenizer


@dataclass(frozen=True)
class Baseline:
    """A horizontal line in the picture; in bits per byte, because it may have counted other tokens."""

    name: str
    bits_per_byte: float

    def loss_per_token_of(self, evaluation: Evaluation) -> float:
        """Nats per token, if the text had been cut into the tokens of `evaluation`."""
        return self.bits_per_byte * math.log(2) * evaluation.bytes / evaluation.tokens


@dataclass(frozen=True)
class DepthCurve:
    """A model read after 1, 2, … steps, of which it takes `trained_depth` unless told otherwise.

    On the curve every token takes every step. If the model has learned to stop, `stopping` has what it
    reaches at several thresholds, in their order: below the curve, it chooses its steps well. `threshold` is
    its own one, if it uses any.
    """

    name: str
    unit: str  # what is counted as a step
    points: dict[int, Evaluation]
    trained_depth: int
    stopping: Sequence[StoppingPoint] = ()
    threshold: float | None = None

    @property
    def own_stopping(self) -> StoppingPoint | None:
        """What the model reaches at its own threshold."""
        return next((point for point in self.stopping if point.threshold == self.threshold), None)

    @property
    def final(self) -> Evaluation:
        """What the model reaches when it is left to itself."""
        return self.points[self.trained_depth] if self.own_stopping is None else self.own_stopping.evaluation


def measure(name: str, model: GPT, params: Params, tokens_folder: Path, device: torch.device) -> DepthCurve:
    """The depth curve of a model on the validation split, or on as much of it as `params.depth` says.

    Raises UserError if the split is shorter than one of the model's windows.
    """
    val, token_bytes = open_split(tokens_folder, "val"), load_tokenizer(tokens_folder).token_bytes
    check_fits(val, model.block_size, "val")
    which = (val, model.block_size, params.train.batch_size, params.depth.eval_iters)

    def batches(what: str) -> tqdm[Any]:
        total = count_batches(*which)
        return tqdm(evaluation_windows(*which), desc=what, total=total, unit="batch", disable=None)

    points = evaluate_by_depth(model, batches(f"{name} by depth"), token_bytes, device)
    curve = DepthCurve(name, model.trunk.unit, points, model.depth)
    if model.stopping is None:
        return curve
    own = model.stopping.threshold
    thresholds = sorted({*params.depth.stopping_thresholds, *([] if own is None else [own])})
    if not thresholds:
        return curve
    stopping = evaluate_stopping(model, batches(f"{name} by threshold"), token_bytes, device, thresholds)
    return replace(curve, stopping=stopping, threshold=own)
