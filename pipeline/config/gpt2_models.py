"""The GPT-2 models that OpenAI published (Radford et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.model import GPTConfig


@dataclass(frozen=True)
class Published:
    """Where a published model is stored, and its shape."""

    repository: str  # on the Hugging Face hub
    revision: str  # a commit, so that the weights never change
    n_layer: int
    n_head: int
    n_embd: int

    @property
    def config(self) -> GPTConfig:
        shape = {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd, "block_size": 1024}
        others = {"bias": True, "dropout": 0.1, "activation": "gelu_new", "vocab_size": 50257}
        return GPTConfig.model_validate({**shape, **others})


PUBLISHED = {
    "gpt2": Published("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", 12, 12, 768),
    "gpt2-medium": Published(
        "openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", 24, 16, 1024
    ),
    "gpt2-large": Published(
        "openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519", 36, 20, 1280
    ),
    "gpt2-xl": Published(
        "openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2", 48, 25, 1600
    ),
}
