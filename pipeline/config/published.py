"""The GPT-2 models that OpenAI published (Radford et al. 2019), and the check before weights are reused."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig, Model


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


def check_start(model: Model, start: Model, name: str) -> None:
    """Raise UserError if `model` cannot start from weights of the shape `start`, which are called `name`.

    The two may differ in a shorter context, and in parameters that change no weights, such as dropout.
    """
    differing = []
    for field in Model.model_fields:
        asked, has = getattr(model, field), getattr(start, field)
        shorter = field == "block_size" and asked < has
        may_change = not Model.facts(field).changes_weights and "concat" not in (asked, has)
        if asked != has and not shorter and not may_change:
            differing.append(field)
    if not differing:
        return
    first, *others = differing
    asked, has = (_written(getattr(section, first)) for section in (model, start))
    also = f" (also different: {', '.join(others)})" if others else ""
    raise UserError(
        f"model.{first} = {asked}, but train.init_from = {name} has {has}{also}; make them equal, or let "
        f"`gpt-pipeline start-from {name}` do that"
    )


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
