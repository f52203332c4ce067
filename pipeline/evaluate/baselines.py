"""What a model has to beat on the same text: predictors that need no download, and other models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.shards import open_split
from pipeline.data.tokenizers import Tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.evaluate.compression import xz_bits
from pipeline.evaluate.ngram import NGram
from pipeline.params import Params

NGRAM_ORDERS = {"uniform": 0, "unigram": 1, "bigram": 2, "trigram": 3}


def evaluate_baseline(name: str, params: Params, tokens_folder: Path) -> dict[str, Any]:
    """Loss in nats per token and bits per byte of a baseline, or of the model in the folder `name`.

    Every token of the validation split but the first is predicted, as a GPT predicts them. Raises UserError
    if `name` is neither.
    """
    if name in NGRAM_ORDERS:
        result = _ngram(NGRAM_ORDERS[name], params.baselines.train_tokens, tokens_folder)
    elif name == "xz":
        result = _xz(tokens_folder)
    elif ".." in Path(name).parts or name.endswith("/"):
        raise UserError(f"baseline {name}: name a folder without .. and without a / at its end")
    elif Path(name).is_dir():
        result = _saved_model(Path(name), params, tokens_folder)
    else:
        raise UserError(
            f"baseline {name}: neither one of {', '.join([*NGRAM_ORDERS, 'xz'])} nor a saved model's folder"
        )
    return {"name": name, **result}


def file_name(name: str) -> str:
    """Where below results/baselines/ a baseline's figures go; dvc.yaml spells it the same way."""
    return f"{name.lstrip('/')}.json"


def _ngram(order: int, train_tokens: int, tokens_folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(tokens_folder)
    train, val = open_split(tokens_folder, "train"), open_split(tokens_folder, "val")
    model = NGram.fit(train.read(0, min(len(train), train_tokens)), tokenizer.vocab_size, order)
    text = val.read(0, len(val))
    nats = float(model.nll(text).sum())
    return _result(nats, len(text) - 1, int(tokenizer.token_bytes[np.asarray(text[1:])].sum()))


def _xz(tokens_folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(tokens_folder)
    val = open_split(tokens_folder, "val")
    text = tokenizer.decode_bytes(val.read(0, len(val)).tolist())
    return _result(xz_bits(text) * math.log(2), len(val), len(text))


def _saved_model(folder: Path, params: Params, tokens_folder: Path) -> dict[str, Any]:
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
    evaluation = evaluate(model, windows, tokenizer.token_bytes, device)
    return _result(evaluation.nats, evaluation.tokens, evaluation.bytes) | {"params": model.num_params()}


def _retokenized(ids: np.ndarray, own: Tokenizer, other: Tokenizer) -> np.ndarray:
    """The text of ids in another tokenizer's ids, document by document."""
    documents = np.split(ids, np.flatnonzero(ids == own.end_of_text) + 1) if own.end_of_text else [ids]
    parts = []
    for document in documents:
        parts.append(other.encode(own.decode(document.tolist())))
        if other.end_of_text is not None and len(document) and document[-1] == own.end_of_text:
            parts.append(np.array([other.end_of_text], dtype=np.uint32))
    return np.concatenate(parts)


def _result(nats: float, tokens: int, text_bytes: int) -> dict[str, Any]:
    loss = nats / tokens
    return {
        "val_loss": loss,
        "val_bpb": nats / math.log(2) / text_bytes if text_bytes else math.nan,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": tokens,
        "bytes": text_bytes,
    }
