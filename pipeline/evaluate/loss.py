"""Cross-entropy of a model on fixed windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from pipeline.distributed.sharded import without_gradients
from pipeline.distributed.world import world
from pipeline.evaluate.evaluation import Evaluation
from pipeline.model.gpt import GPT, cross_entropy
from pipeline.runtime.device import autocast, to_device
from pipeline.tokens.batches import Batch, count_batches, evaluation_windows
from pipeline.tokens.shards import Tokens

NEVER = 1.0  # a threshold for learned stopping that no token exceeds

TOKENS_ON_CPU = 1 << 10  # at once: more are no faster, and need more memory than a small training
TOKENS_ON_GPU = 1 << 15
LOGITS = 1 << 29  # bytes at once, in float32


def windows_at_once(model: GPT, device: torch.device) -> int:
    """How many windows to evaluate as one batch, for speed: `train.batch_size` may be small."""
    vocab_size = model.embed.wte.weight.shape[0]
    tokens = TOKENS_ON_CPU if device.type == "cpu" else TOKENS_ON_GPU
    return max(1, min(tokens, LOGITS // (4 * vocab_size)) // model.block_size)


def shown_windows(
    description: str, tokens: Tokens, block_size: int, at_once: int, limit: int | None = None
) -> tqdm[Any]:
    """`evaluation_windows` whose progress is shown on a terminal, by one of several ranks."""
    arguments = (tokens, block_size, at_once, limit)
    silent = None if world().is_main else True  # None: but on a terminal
    windows, total = evaluation_windows(*arguments), count_batches(*arguments)
    return tqdm(windows, desc=description, total=total, unit="batch", disable=silent)


def evaluate(
    model: GPT,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    device: torch.device,
    dtype: str = "float32",
) -> Evaluation:
    """Evaluate `model` on (inputs, targets) batches; `token_bytes[i]` is the number of bytes of id i.

    `dtype` is that of the matrix products before the head. The head's are float32 in any case: in 16 bits,
    large logits would be rounded by tenths.
    """

    def readings(ids: torch.Tensor) -> list[Reading]:
        with autocast(device, dtype):
            x = model.hidden_states(ids)
        return [Reading(model.head(x if dtype == "float32" else x.float()))]

    ((evaluation, _),) = evaluate_each(readings, model, batches, token_bytes, device)
    return evaluation


def evaluate_by_depth(
    model: GPT, batches: Iterable[Batch], token_bytes: np.ndarray, device: torch.device
) -> dict[int, Evaluation]:
    """Like `evaluate`, after each number of steps in `model.depths`, in one pass over the batches.

    Every token takes every step: a model with learned stopping weights the steps as in training, but no token
    stops early.
    """

    def readings(ids: torch.Tensor) -> Iterator[Reading]:
        return map(Reading, model.logits_by_depth(ids))

    with stopping_at(model, NEVER):
        curve = evaluate_each(readings, model, batches, token_bytes, device)
    return {depth: evaluation for depth, (evaluation, _) in zip(model.depths, curve, strict=True)}


@dataclass(frozen=True)
class StoppingPoint:
    """The result of learned stopping at a threshold: an evaluation, and the mean number of steps per token.

    If `threshold` is None, all steps are computed, as in training, and `mean_depth` is the expected depth.
    """

    threshold: float | None
    mean_depth: float
    evaluation: Evaluation


def evaluate_stopping(
    model: GPT,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    device: torch.device,
    thresholds: Sequence[float | None],
) -> list[StoppingPoint]:
    """Like `evaluate`, at each of the thresholds for learned stopping, in one pass over the batches."""

    def readings(ids: torch.Tensor) -> Iterator[Reading]:
        for threshold in thresholds:
            with stopping_at(model, threshold):
                logits, mean_depth = model.logits_and_mean_depth(ids)
            yield Reading(logits, float(mean_depth))

    found = evaluate_each(readings, model, batches, token_bytes, device)
    return [
        StoppingPoint(threshold, mean_depth, evaluation)
        for threshold, (evaluation, mean_depth) in zip(thresholds, found, strict=True)
    ]


@contextmanager
def stopping_at(model: GPT, threshold: float | None) -> Iterator[None]:
    """Within the `with` block, learned stopping uses this threshold, if the model has learned stopping."""
    stopping = model.stopping
    if stopping is None:
        yield
        return
    own, stopping.threshold = stopping.threshold, threshold
    try:
        yield
    finally:
        stopping.threshold = own


class Reading(NamedTuple):
    """What a model makes of a batch: logits (B, T, vocabulary), and the mean number of steps of a token."""

    logits: torch.Tensor
    mean_depth: float = 0.0


def evaluate_each(
    readings: Callable[[torch.Tensor], Iterable[Reading]],
    model: GPT,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    device: torch.device,
) -> list[tuple[Evaluation, float]]:
    """An Evaluation and the mean depth for each of the readings that `readings` yields for ids (B, T).

    Of several ranks, which all have the same batches, each reads some of them.
    """
    was_training = model.training
    model.eval()
    sums: list[torch.Tensor] = []  # of nats
    steps: list[torch.Tensor] = []
    tokens = bytes_ = 0
    with without_gradients(model):
        for (ids, targets), counts in world().shares(batches):
            if counts:
                tokens += targets.numel()
                bytes_ += int(token_bytes[targets.numpy()].sum())
            ids, targets = to_device((ids, targets), device)
            nats, depths = [], []
            for reading in readings(ids):
                of_batch = cross_entropy(reading.logits, targets, reduction="sum").float()
                nats.append(of_batch if counts else torch.zeros_like(of_batch))
                depths.append(reading.mean_depth * targets.numel() * counts)
            sums.append(torch.stack(nats))
            steps.append(torch.tensor(depths, dtype=torch.float64))
    model.train(was_training)
    # Summed in double, so that order hardly matters.
    totals, all_steps = (world().sum(torch.stack(each).cpu().double().sum(0)) for each in (sums, steps))
    tokens, bytes_ = world().sum(torch.tensor([tokens, bytes_])).tolist()
    return [
        (Evaluation(float(total), tokens, bytes_), float(taken) / tokens)
        for total, taken in zip(totals, all_steps, strict=True)
    ]
