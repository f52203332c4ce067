"""What a model has to beat on the same text: predictors that need no download, and other models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipeline.data.shards import open_split
from pipeline.data.tokenizers import Tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.evaluate.compression import xz_bits
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.ngram import NGram
from pipeline.params import BASELINES, Params

NGRAM_ORDERS = {"uniform": 0, "unigram": 1, "bigram": 2, "trigram": 3}


def evaluate_baseline(name: str, params: Params, tokens_folder: Path) -> Evaluation:
    """How well a baseline, or the model in the folder `name`, predicts the validation split.

    Every token but the first is predicted, as a GPT predicts them. Raises UserError if `name` is neither.
    """
    if name in NGRAM_ORDERS:
        return _ngram(NGRAM_ORDERS[name], params.baselines.train_tokens, tokens_folder)
    if name == "xz":
        return _xz(tokens_folder)
    if ".." in Path(name).parts or name.endswith("/"):
        raise UserError(f"baseline {name}: name a folder without .. and without a / at its end")
    if Path(name).is_dir():
        return _saved_model(Path(name), params, tokens_folder)
    raise UserError(f"baseline {name}: neither one of {', '.join(BASELINES)} nor a saved model's folder")


def file_name(name: str) -> str:
    """Where below results/baselines/ a baseline's figures go; dvc.yaml spells it the same way."""
    return f"{name.lstrip('/')}.json"


def _ngram(order: int, train_tokens: int, tokens_folder: Path) -> Evaluation:
    tokenizer = load_tokenizer(tokens_folder)
    train, val = open_split(tokens_folder, "train", train_tokens), open_split(tokens_folder, "val")
    model = NGram.fit(train.read(0, min(len(train), train_tokens)), tokenizer.vocab_size, order)
    text = val.read(0, len(val))
    text_bytes = int(tokenizer.token_bytes[np.asarray(text[1:])].sum())
    return Evaluation(float(model.nll(text).sum()), len(text) - 1, text_bytes)


def _xz(tokens_folder: Path) -> Evaluation:
    tokenizer = load_tokenizer(tokens_folder)
    val = open_split(tokens_folder, "val")
    text = tokenizer.decode_bytes(val.read(0, len(val)).tolist())
    return Evaluation(xz_bits(text) * math.log(2), len(val), len(text))


def _saved_model(folder: Path, params: Params, tokens_folder: Path) -> Evaluation:
    """A model with another tokenizer reads the same text in its own tokens: compare bits per byte then."""
    from pipeline.data.batches import evaluation_windows
    from pipeline.data.shards import Tokens
    from pipeline.device import use_device
    from pipeline.evaluate.loss import evaluate
    from pipeline.model.saved import load_model

    tokenizer, val = load_tokenizer(folder), open_split(tokens_folder, "val")
    own = load_tokenizer(tokens_folder)
    if tokenizer.to_json() != own.to_json():
        val = Tokens([_retokenized(val.read(0, len(val)), own, tokenizer)])
    device = use_device(params.runtime)
    model = load_model(folder, device)
    windows = evaluation_windows(val, model.block_size, params.train.batch_size)
    return evaluate(model, windows, tokenizer.token_bytes, device)


def _retokenized(ids: np.ndarray, own: Tokenizer, other: Tokenizer) -> np.ndarray:
    """The text of ids in another tokenizer's ids, document by document."""
    documents = (
        np.split(ids, np.flatnonzero(ids == own.end_of_text) + 1) if own.end_of_text is not None else [ids]
    )
    parts = []
    for document in documents:
        parts.append(other.encode(own.decode(document.tolist())))
        if other.end_of_text is not None and len(document) and document[-1] == own.end_of_text:
            parts.append(np.array([other.end_of_text], dtype=np.uint32))
    return np.concatenate(parts)
