"""Cross-entropy of a model on fixed windows, in nats per token, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.batches import Batch
from pipeline.model.gpt import GPT, cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted: total nats over `tokens` tokens that stand for `bytes` bytes."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # beyond, a float overflows

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text: comparable across tokenizers."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def summary(self, split: str = "val") -> dict[str, Any]:
        """The keys that every JSON file of results uses."""
        return {
            f"{split}_loss": self.loss,
            f"{split}_bpb": self.bits_per_byte,
            "perplexity": self.perplexity,
            "evaluated": asdict(self),
        }


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
        ids, targets = ids.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        sums.append(torch.stack([cross_entropy(x, targets, reduction="sum").float() for x in readings(ids)]))
    model.train(was_training)
    totals = torch.stack(sums).cpu().double().sum(0)  # summed in double, so that order hardly matters
    return [Evaluation(float(nats), tokens, bytes_) for nats in totals]
