"""The initial weights of a run: random, or those of another model."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config.errors import UserError, naming
from pipeline.config.model import GPTConfig
from pipeline.config.model_rules import check_start
from pipeline.config.params import Params
from pipeline.model.build import build_gpt, padded_vocab_size
from pipeline.model.gpt import GPT
from pipeline.model.load import build_with
from pipeline.tokens.tokenizers import Tokenizer
from pipeline.weights.model_folder import Weights
from pipeline.weights.names import place_on_hub
from pipeline.weights.open import StoredModel, open_model


class Start:
    """The config that a run trains, and the stored model that it starts from, if any."""

    def __init__(self, params: Params, tokenizer: Tokenizer, tokens_folder: Path) -> None:
        """Raises UserError if the model is missing, or does not fit the parameters or the tokens."""
        init_from = params.train.init_from
        self.name = "scratch" if init_from == "resume" else init_from
        self._seed = params.train.seed
        self._stored = _open(params, tokenizer, tokens_folder)
        rows = (
            padded_vocab_size(tokenizer.vocab_size)
            if self._stored is None
            else self._stored.config.vocab_size
        )
        self.config = GPTConfig(**params.model.model_dump(), vocab_size=rows)

    @property
    def weights(self) -> str | None:
        """The sha256 of the initial weights, so that the run key does not depend on their folder's name."""
        return None if self._stored is None else self._stored.sha256

    @property
    def repository(self) -> str | None:
        """The repository of the initial model, if it comes from the Hugging Face Hub."""
        place = place_on_hub(self.name)
        return place and place[0]

    def build(self, weights: Weights | None = None) -> GPT:
        """The model at step 0, on the CPU; or with other weights, such as a checkpoint's.

        Random weights are drawn from torch's generator, seeded here.
        """
        if weights is not None:
            return build_with(self.config, weights)
        torch.manual_seed(self._seed)
        if self._stored is None:
            return build_gpt(self.config)
        return build_with(self.config, self._stored.weights_for(self.config.block_size))


def _open(params: Params, tokenizer: Tokenizer, tokens_folder: Path) -> StoredModel | None:
    name = params.train.init_from
    if name in ("scratch", "resume"):
        return None
    with naming("train.init_from"):
        stored = open_model(name)
        check_start(params.model, stored.config, name)
        own = stored.tokenizer(like=tokenizer)
    if not own.same_ids(tokenizer):
        raise UserError(
            f"train.init_from = {name}: its tokenizer differs from that of {tokens_folder}; set "
            f"tokenizer.name = pretrained and tokenizer.model = {name}"
        )
    return stored
