"""Cross-entropy of a model on fixed windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from pipeline.data.batches import Batch
from pipeline.device import to_device
from pipeline.evaluate.evaluation import Evaluation
from pipeline.model.gpt import GPT, cross_entropy


def evaluate(
    model: GPT, batches: Iterable[Batch], token_bytes: np.ndarray, device: torch.device
) -> Evaluation:
    """Evaluate `model` on (inputs, targets) batches; `token_bytes[i]` is the number of bytes of id i."""
    (evaluation,) = evaluate_each(lambda ids: [model(ids)], model, batches, token_bytes, device)
    return evaluation


def evaluate_by_depth(
    model: GPT, batches: Iterable[Batch], token_bytes: np.ndarray, device: torch.device
) -> list[Evaluation]:
    """Like `evaluate`, after each of the model's 1 … depth steps, in one pass over the batches."""
    return evaluate_each(model.logits_by_depth, model, batches, token_bytes, device)


@torch.inference_mode()
def evaluate_each(
    readings: Callable[[torch.Tensor], Iterable[torch.Tensor]],
    model: GPT,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    device: torch.device,
) -> list[Evaluation]:
    """An Evaluation for each of the logits (B, T, vocabulary) that `readings` takes of a batch's ids."""
    was_training = model.training
    model.eval()
    sums: list[torch.Tensor] = []
    tokens = bytes_ = 0
    for ids, targets in batches:
        tokens += targets.numel()
        bytes_ += int(token_bytes[targets.numpy()].sum())
        ids, targets = to_device((ids, targets), device)
        sums.append(torch.stack([cross_entropy(x, targets, reduction="sum").float() for x in readings(ids)]))
    model.train(was_training)
    totals = torch.stack(sums).cpu().double().sum(0)  # summed in double, so that order hardly matters
    return [Evaluation(float(nats), tokens, bytes_) for nats in totals]
