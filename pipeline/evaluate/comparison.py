"""The figures of the trained model and of its baselines, one row for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.params import Params
from pipeline.config.paths import BASELINES, PRETRAINED
from pipeline.config.reading import read_json
from pipeline.evaluate.baselines import file_name
from pipeline.storage.checksums import REMEDY, check_recorded

OURS = "this model"


@dataclass(frozen=True)
class Row:
    """One model's figures. Losses are in nats per token of its own tokenizer."""

    name: str  # the trained model has the name OURS
    params: int | None
    train_loss: float | None
    val_loss: float
    perplexity: float
    val_bpb: float  # bits per byte, comparable across tokenizers
    first_tokens: int | None  # how many tokens of the split it read, if not all
    same_tokens: bool  # whether its tokens are the trained model's
    published: float | None  # the validation loss that others report


def rows(
    results: Iterable[dict[str, Any]], data: str, tokens: int, published: Mapping[str, float]
) -> list[Row]:
    """A row for each of a run's metrics or a baseline's figures with the manifest fingerprint `data`.

    `tokens` is the number of tokens that a GPT predicts in the validation split; a model with another number
    has another tokenizer. `published` has published losses by model name.
    """
    found = {}
    for figures in results:
        if figures["data"] == data:
            row = _row(figures, tokens, published)
            found[row.name, row.first_tokens] = row
    return list(found.values())


def baseline_files(params: Params) -> dict[str, Path]:
    """The result file of each baseline and model in the parameters, keyed by the stage that writes it."""
    files = {f"eval_baselines@{name}": BASELINES / file_name(name) for name in params.baselines.models}
    return files | {
        f"stages/dvc.yaml:eval_baselines@{name}": PRETRAINED / file_name(name)
        for name in params.baselines.pretrained
    }


def read_results(record: Path, metrics: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of the published run, and all figures of its model, from the metrics and from the record.

    Raises UserError unless they belong together.
    """
    facts = check_recorded(record)
    if "finished" not in facts:
        raise UserError(f"{record}: an earlier version wrote it; {REMEDY}")
    return facts, {**facts["finished"], **read_json(metrics)}


def _row(figures: Mapping[str, Any], tokens: int, published: Mapping[str, float]) -> Row:
    name = figures.get("name", OURS)  # the metrics of a training run have none
    first_tokens = figures.get("first_tokens")
    tokens = tokens if first_tokens is None else first_tokens - 1
    counted = tokens if name == OURS else figures["tokens"]
    return Row(
        name=name,
        params=figures.get("params"),
        train_loss=figures.get("train_loss"),
        val_loss=figures["val_loss"],
        perplexity=figures["perplexity"],
        val_bpb=figures["val_bpb"],
        first_tokens=first_tokens,
        same_tokens=counted in (tokens, tokens + 1),  # a compressor counts the first token too
        published=published.get(name),
    )
