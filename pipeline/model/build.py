"""From parameters to a model: the one place that reads the model's switches and picks the parts."""

from __future__ import annotations

import math

from pydantic import Field
from torch import nn

from pipeline import params
from pipeline.model.attention import CausalSelfAttention
from pipeline.model.block import Block
from pipeline.model.feedforward import FeedForward
from pipeline.model.gpt import GPT, Embedding, Head, TiedProjection
from pipeline.model.trunk import Stack


class GPTConfig(params.Model):
    """The `model` section plus the vocabulary it is trained for; saved as config.json beside the weights."""

    vocab_size: int = Field(ge=1, description="rows of the embedding, padding included")


def padded_vocab_size(vocab_size: int) -> int:
    """Rows for the embedding: large vocabularies are padded to a multiple of 64, which runs faster.

    GPT-2's 50,257 become nanoGPT's 50,304. Small vocabularies gain nothing and keep their size.
    """
    return vocab_size if vocab_size < 1 << 14 else math.ceil(vocab_size / 64) * 64


def build_gpt(config: GPTConfig) -> GPT:
    """A freshly initialized model, drawn from torch's global random state."""
    c = config

    def norm() -> nn.Module:
        return nn.LayerNorm(c.n_embd, bias=c.bias)

    def block() -> Block:
        attention = CausalSelfAttention(c.n_embd, c.n_head, c.bias, c.dropout)
        return Block(norm(), attention, norm(), FeedForward(c.n_embd, c.bias, c.dropout))

    embed = Embedding(c.vocab_size, c.block_size, c.n_embd, c.dropout)
    trunk = Stack([block() for _ in range(c.n_layer)])
    head = Head(norm(), TiedProjection(embed.wte))
    model = GPT(embed, trunk, head, c.block_size)
    initialize(model, residual_writes=2 * trunk.depth)
    return model


def initialize(model: nn.Module, residual_writes: int) -> None:
    """GPT-2's initialization (Radford et al. 2019, section 2.3).

    Weights are normal with deviation 0.02, biases zero; the projections that write to the residual stream
    are scaled by 1 / sqrt(number of such writes), so that the stream's size does not grow with depth.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = 1 / math.sqrt(residual_writes) if name.endswith("c_proj") else 1.0
            nn.init.normal_(module.weight, std=0.02 * scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
