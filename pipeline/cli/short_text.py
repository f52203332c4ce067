"""Smaller parameters for a text that is too short for the present ones: the rule of `train-on`."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from pipeline.config.params import Params
from pipeline.config.presets import flatten
from pipeline.corpus.own_text import VALIDATION
from pipeline.corpus.sources import DatasetSpec, FilesSource

CHARACTERS_PER_TOKEN = 6  # of a BPE; more than most texts have, so that there are at least so many tokens
OCCURRENCES = 50  # of each token of a vocabulary in the text, on average
SMALLEST_BPE = 512
FEWEST_STEPS = 20

Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Aim:
    """How a model is trained on short text: in so many passes, and with a tokenizer that may change."""

    passes: int
    tokenizer_may_change: bool


FROM_SCRATCH = Aim(passes=40, tokenizer_may_change=True)
FINETUNING = Aim(passes=5, tokenizer_may_change=False)


def fit_short_text(params: Params, spec: DatasetSpec, aim: Aim) -> tuple[DatasetSpec, Values]:
    """The parameters to change for a user's text, and its dataset.yaml, which keeps them for `presets`.

    Says so in a line. Both are as before if the text is long enough. It is too short if a learned vocabulary
    would see each token fewer than OCCURRENCES times, or if the validation split does not fill one window.
    """
    if not isinstance(spec.source, FilesSource) or spec.source.characters is None:
        return spec, {}
    values = _values(params, spec.source.characters, aim)
    if values:
        amount = f"{spec.source.characters:,} characters"
        print(f"a short text, of {amount}, so the parameters get smaller (the rule is in docs/guide.md)")
    return spec.model_copy(update={"short_text": flatten(values)}), values


def _values(params: Params, characters: int, aim: Aim) -> Values:
    values = _tokenizer(params, characters) if aim.tokenizer_may_change else {}
    name = values.get("tokenizer", {}).get("name", params.tokenizer.name)
    tokens = characters // (1 if name in ("char", "byte") else CHARACTERS_PER_TOKEN)
    validation = int(tokens * VALIDATION)
    block_size = params.model.block_size
    if validation <= block_size:
        block_size = min(block_size, _power_of_two(validation // 2))
        values["model"] = {"block_size": block_size}
    if not values:
        return {}
    train = params.train
    per_step = block_size * train.batch_size * train.gradient_accumulation_steps
    steps = max(FEWEST_STEPS, ceil(aim.passes * (tokens - validation) / per_step))
    if steps < train.max_iters:
        values["train"] = {
            "max_iters": steps,
            "lr_decay_iters": steps,
            "warmup_iters": min(train.warmup_iters, steps // 10),
            "eval_interval": min(train.eval_interval, max(1, steps // 5)),
        }
    return values


def _tokenizer(params: Params, characters: int) -> Values:
    """A vocabulary for a BPE that is to be learned; bytes where even a small one is too large."""
    most = characters // OCCURRENCES // 64 * 64
    if params.tokenizer.name != "bpe" or params.tokenizer.vocab_size <= most:
        return {}
    return {"tokenizer": {"vocab_size": most} if most >= SMALLEST_BPE else {"name": "byte"}}


def _power_of_two(limit: int) -> int:
    """The largest one up to `limit`, at least 1."""
    return 1 << max(0, limit.bit_length() - 1)
