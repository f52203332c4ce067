"""Baselines on the same text: n-gram models, a compressor, and other models."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.errors import UserError
from pipeline.config.params import Params
from pipeline.config.paths import BASELINES
from pipeline.evaluate.compression import xz_bits
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.kneser_ney import ORDER, KneserNey
from pipeline.evaluate.ngram import NGram
from pipeline.storage.checksums import read_checked_json, write_checked_json
from pipeline.tokens.shards import open_split, open_tokenizer
from pipeline.tokens.tokenizers import Tokenizer

NGRAM_ORDERS = {"uniform": 0, "unigram": 1, "bigram": 2, "trigram": 3}
KNESER_NEY = "kneser-ney"
LABELS = {
    "bigram": "bigram, interpolated",
    "trigram": "trigram, interpolated",
    KNESER_NEY: f"{ORDER}-gram, Kneser-Ney",
}


@dataclass(frozen=True)
class BaselineResult:
    """How well a baseline predicts the validation split, and as many tokens of the training split."""

    val: Evaluation
    train: Evaluation | None = None  # None for a compressor, which has no training
    params: int | None = None
    weights: str | None = None  # sha256
    first_tokens: int | None = None  # of the split, if not all of it was read

    def as_json(self) -> dict[str, Any]:
        return {
            **self.val.as_json(),
            "train_loss": self.train and self.train.loss,
            "params": self.params,
            "weights": self.weights,
            "first_tokens": self.first_tokens,
        }


def evaluate_baseline(name: str, params: Params, tokens_folder: Path) -> BaselineResult:
    """Evaluate a baseline, or the model called `name`, on the validation split.

    Every token but the first is predicted, as by a GPT; xz encodes all of them. A model may read only the
    first `baselines.eval_tokens`. Except for xz, the start of the training split is evaluated too, with as
    many tokens. Raises UserError if there is no such baseline or model.
    """
    if name in NGRAM_ORDERS or name == KNESER_NEY:
        return _ngram(name, params.baselines.train_tokens, tokens_folder)
    if name == "xz":
        return _xz(tokens_folder)
    if ".." in Path(name).parts or name.endswith("/"):
        raise UserError(f"baseline {name}: name a folder without .. and without a / at its end")
    return _model(name, params, tokens_folder)


def file_name(name: str) -> str:
    """The path of a baseline's result below results/baselines/; dvc.yaml builds the same path."""
    return f"{name.lstrip('/')}.json"


def write_figures(path: Path, name: str, data: str, result: BaselineResult) -> None:
    """Write the figures of a baseline on the dataset with the manifest fingerprint `data`."""
    write_checked_json(path, {"name": name, "data": data, **result.as_json()})


def read_figures(path: Path) -> dict[str, Any]:
    """What `write_figures` wrote. Raises UserError if it has changed since."""
    return read_checked_json(path, f"remove it, `rm {shlex.quote(str(path))}`, and evaluate it again")


def evaluated(names: Iterable[str], data: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and figures of those baselines that were evaluated on the dataset with the fingerprint `data`."""
    for name in names:
        path = BASELINES / file_name(name)
        if path.exists() and (figures := read_figures(path))["data"] == data:
            yield label(name, figures.get("first_tokens")), figures


def label(name: str, first_tokens: int | None = None) -> str:
    """What tables and pictures call a baseline or model that read so many tokens of the split (None: all)."""
    text = LABELS.get(name, name)
    return text if first_tokens is None else f"{text}, on the first {first_tokens:,} tokens"


def _ngram(name: str, train_tokens: int, tokens_folder: Path) -> BaselineResult:
    tokenizer = open_tokenizer(tokens_folder)
    train, val = open_split(tokens_folder, "train", train_tokens), open_split(tokens_folder, "val")
    counted = train.read(0, min(len(train), train_tokens))
    model = (
        KneserNey.fit(counted, tokenizer.vocab_size)
        if name == KNESER_NEY
        else NGram.fit(counted, tokenizer.vocab_size, NGRAM_ORDERS[name])
    )

    def evaluation(text: np.ndarray) -> Evaluation:
        text_bytes = int(tokenizer.token_bytes[np.asarray(text[1:])].sum())
        return Evaluation(float(model.nll(text).sum()), len(text) - 1, text_bytes)

    return BaselineResult(
        evaluation(val.read(0, len(val))), evaluation(train.read(0, min(len(train), len(val))))
    )


def _xz(tokens_folder: Path) -> BaselineResult:
    tokenizer = open_tokenizer(tokens_folder)
    val = open_split(tokens_folder, "val")
    text = tokenizer.decode_bytes(val.read(0, len(val)).tolist())
    return BaselineResult(Evaluation(xz_bits(text) * math.log(2), len(val), len(text)))


def _model(name: str, params: Params, tokens_folder: Path) -> BaselineResult:
    """Evaluate a model on the same text in its own tokens. Bits per byte compare across tokenizers."""
    from pipeline.distributed.world import world
    from pipeline.evaluate.loss import evaluate, shown_windows, windows_at_once
    from pipeline.model.load import load_model
    from pipeline.runtime.device import use_device
    from pipeline.tokens.shards import Tokens
    from pipeline.weights.open import open_model

    stored, own = world().main_first(lambda: open_model(name)), open_tokenizer(tokens_folder)
    tokenizer = stored.tokenizer(like=own)
    val = open_split(tokens_folder, "val")
    length = min(len(val), params.baselines.eval_tokens or len(val))
    texts = {"val": val, "train": open_split(tokens_folder, "train", length)}
    device = use_device(params.runtime)
    model = load_model(stored, device)
    results = {}
    for split, tokens in texts.items():
        ids = tokens.read(0, min(len(tokens), length))
        if not tokenizer.same_ids(own):
            ids = _retokenized(ids, own, tokenizer)
        arguments = (Tokens([ids]), model.block_size, windows_at_once(model, device))
        windows = shown_windows(f"{name} on {split}", *arguments)
        results[split] = evaluate(model, windows, tokenizer.token_bytes, device)
    first_tokens = length if length < len(val) else None
    return BaselineResult(results["val"], results["train"], model.num_params(), stored.sha256, first_tokens)


def _retokenized(ids: np.ndarray, own: Tokenizer, other: Tokenizer) -> np.ndarray:
    """The same text as ids of the tokenizer `other`, encoded document by document.

    Where the text was cut amid a character, that one is left out.
    """
    documents = (
        np.split(ids, np.flatnonzero(ids == own.end_of_text) + 1) if own.end_of_text is not None else [ids]
    )
    parts = []
    for document in documents:
        text = own.decode(document.tolist()).removesuffix("\N{REPLACEMENT CHARACTER}")  # half a character
        parts.append(other.encode(text))
        if other.end_of_text is not None and len(document) and document[-1] == own.end_of_text:
            parts.append(np.array([other.end_of_text], dtype=np.uint32))
    return np.concatenate(parts)
