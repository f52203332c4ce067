"""Set params.yaml to train from a model's weights, with its shape and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.preset import show_changes
from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import Model
from pipeline.config.params import PARAMS_FILE, load_params
from pipeline.config.presets import differences, overlay
from pipeline.config.validation import read_yaml
from pipeline.model.size import check_size
from pipeline.storage.files import write_text
from pipeline.weights.names import check_kept
from pipeline.weights.open import GPT2_VOCABULARIES, open_model

BlockSize = Annotated[
    int | None, typer.Option(min=1, help="A shorter context than the model's own.", show_default=False)
]


def main(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model's folder, gpt2 (-medium, -large, -xl), or a name on the hub."
        ),
    ],
    block_size: BlockSize = None,
) -> None:
    """Set model.*, tokenizer.* and train.init_from to finetune a model; model.dropout is not changed."""
    params, before = load_params(), read_yaml(PARAMS_FILE)
    values = start_values(model, block_size, params.model.dropout)
    write_text(PARAMS_FILE, overlay(PARAMS_FILE.read_text(encoding="utf-8"), values))
    print(f"{PARAMS_FILE}: training starts from {model}")
    show_changes(differences(before, read_yaml(PARAMS_FILE)))
    if "tokenizer" not in values:
        print(f"note: {model} has no tokenizer, so set tokenizer.name to the one it was trained with")


def start_values(name: str, block_size: int | None, dropout: float) -> dict[str, Any]:
    """The sections `model`, `train` and `tokenizer` of parameters for training that starts from a model.

    `tokenizer` is left out if the model has none and its vocabulary is not GPT-2's. Raises UserError if there
    is no such model, if it is the one that training replaces, or if its context is shorter than `block_size`.
    """
    check_kept(name)
    # The config of a published model is known without a download.
    stored = None if name in PUBLISHED and not Path(name).is_dir() else open_model(name)
    config = PUBLISHED[name].config if stored is None else stored.config
    if stored is not None:
        check_size(config, len(stored.weights.shapes), stored.weights.path)
    if block_size is not None and block_size > config.block_size:
        raise UserError(
            f"--block-size {block_size}: {name} has {config.block_size} positions; use that many or fewer"
        )
    shape = {key: getattr(config, key) for key in Model.model_fields} | {"dropout": dropout}
    values: dict[str, Any] = {
        "model": shape | ({"block_size": block_size} if block_size else {}),
        "train": {"init_from": name},
    }
    if stored is not None and stored.has_tokenizer:
        values["tokenizer"] = {"name": "pretrained", "model": name}
    elif config.vocab_size in GPT2_VOCABULARIES:
        values["tokenizer"] = {"name": "gpt2", "model": None}
    return values
