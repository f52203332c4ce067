"""The result of evaluating any predictor on a text: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted: the total loss in nats over `tokens` tokens, which are `bytes` bytes."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # exp of more overflows a float

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text: comparable across tokenizers."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def as_json(self) -> dict[str, Any]:
        """The figures as a baseline's result file has them."""
        return {
            "val_loss": self.loss,
            "val_bpb": self.bits_per_byte,
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }
