"""A model, parameters and a corpus small enough to train in a moment."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from pipeline.config.model import GPTConfig
from pipeline.config.params import Params
from pipeline.config.presets import compose, composed
from pipeline.model.build import build_gpt
from pipeline.model.gpt import GPT

ROOT = Path(__file__).parents[1]

OVERRIDES = [
    "data.dataset=tiny",
    "tokenizer.name=char",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=8",
    "model.bias=true",
    "model.dropout=0.1",
    "train.batch_size=4",
    "train.gradient_accumulation_steps=2",
    "train.max_iters=20",
    "train.learning_rate=0.01",
    "train.warmup_iters=2",
    "train.lr_decay_iters=20",
    "train.min_lr=0.001",
    "train.eval_interval=6",
    "train.eval_iters=3",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.checkpoint_interval=4",
    "log.log_interval=5",
    "sample.num_samples=2",
    "sample.max_new_tokens=20",
]
WORDS = [
    "the",
    "a",
    "small",
    "red",
    "old",
    "ship",
    "sea",
    "bird",
    "sails",
    "sings",
    "sinks",
    "over",
    "under",
    "and",
    "né",
]


def text(words: int = 600) -> str:
    """Lines of words with some structure to learn, always the same."""
    draw = random.Random(0)
    return "".join(draw.choice(WORDS) + draw.choice("   \n") for _ in range(words))


def params_yaml(preset: str = "default") -> str:
    """The text of params.yaml under a preset."""
    return compose(preset, ROOT / "presets")


def params(*overrides: str) -> Params:
    """Parameters of a run of 20 steps, whose checkpoints fall between rows of the log."""
    """Of a tiny GPT-2 trained with AdamW, unless `overrides` say otherwise."""
    plain = composed("nanogpt", ROOT / "presets")
    return plain.with_overrides([*OVERRIDES, *overrides])


def config(**changes: Any) -> GPTConfig:
    values = {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": True, "dropout": 0.0}
    return GPTConfig(**{**values, "vocab_size": 11, **changes})


def model(**changes: Any) -> GPT:
    """A model in evaluation mode, always the same, whose every parameter matters."""
    torch.manual_seed(0)
    gpt = build_gpt(config(**changes)).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return gpt
