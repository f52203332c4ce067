"""Finds a model by name: our folder, one that transformers saved, or a GPT-2 on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import GPTConfig
from pipeline.config.paths import MODEL, RUN_FILE, RUN_FINISHED, RUN_LOCK, checkpoints_in, runs_folder
from pipeline.config.validation import validate
from pipeline.storage.checksums import damage, read_checked_json, sha256_file
from pipeline.storage.lock import holder
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer, gpt2_tokenizer, load_tokenizer
from pipeline.weights.gpt2 import GPT2Weights, config_from_gpt2, is_transformers
from pipeline.weights.hub_models import download_model
from pipeline.weights.model_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Weights,
    load_config,
    verified,
)
from pipeline.weights.names import check_name, place_on_hub

CHECKPOINT = re.compile(r"best|step-[0-9]{9}")  # a folder in runs/<key>/
GPT2_VOCABULARIES = (50257, 50304)  # GPT-2's size, and as nanoGPT pads it


@dataclass(frozen=True)
class StoredModel:
    """A model in a folder, not loaded yet."""

    name: str  # as the user gave it
    folder: Path
    config: GPTConfig
    weights: Weights
    tokenizer_folder: Path
    checksums: Mapping[str, str]  # the sha256 of its files by name, verified; empty without a manifest

    def weights_for(self, block_size: int) -> Weights:
        """The weights for a shorter context, with only the first `block_size` learned positions."""
        return _TruncatedPositions(self.weights, block_size)

    @property
    def has_tokenizer(self) -> bool:
        return any((self.tokenizer_folder / name).exists() for name in (TOKENIZER_FILE, "vocab.json"))

    def tokenizer(self, like: Tokenizer | None = None) -> Tokenizer:
        """The model's tokenizer.

        If transformers saved none, this is `like` if it has the model's vocabulary size, else GPT-2's if that
        fits. Raises UserError if neither fits, and if the tokenizer has more ids than the model.
        """
        if self.has_tokenizer or not isinstance(self.weights, GPT2Weights):
            tokenizer, rows = load_tokenizer(self.tokenizer_folder), self.config.vocab_size
            if tokenizer.vocab_size > rows:
                raise UserError(
                    f"{self.tokenizer_folder}: its tokenizer has {tokenizer.vocab_size:,} ids, but the model "
                    f"has only {rows:,}; put the tokenizer there that it was trained with"
                )
            return tokenizer
        if like is not None and like.vocab_size == self.config.vocab_size:
            return like
        if self.config.vocab_size in GPT2_VOCABULARIES:
            return gpt2_tokenizer()
        raise UserError(
            f"{self.folder}: no {TOKENIZER_FILE} there, and {self.config.vocab_size} is not the size of "
            "GPT-2's vocabulary; put the model's tokenizer there"
        )

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the weights, independent of the folder's name."""
        hashes = [self.checksums.get(path.name) or sha256_file(path) for path in self.weights.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def open_model(name: str | Path, sha256: Callable[[Path], str] = sha256_file) -> StoredModel:
    """Open the model in a folder, a published GPT-2, or the model `user/name[@revision]` on the hub.

    A folder may also be a checkpoint in runs/<key>/. A model that is not on this machine is downloaded. If
    the folder has a manifest, the files are verified against it; `sha256` computes their checksums.
    Raises UserError if there is no such model, if its files are not what was saved, or if transformers saved
    it and it is not a GPT-2.
    """
    folder = find_model(str(name))
    run = folder.parent / RUN_FILE
    if CHECKPOINT.fullmatch(folder.name) and not (folder / CONFIG_FILE).exists() and run.exists():
        about = read_checked_json(run, "restore it from a copy")
        config, data = validate(GPTConfig, about["model"], run), Path(about["data"])
        tokenizer = data / TOKENIZER_FILE
        if not tokenizer.exists() or sha256_file(tokenizer) != about.get("tokenizer"):
            raise UserError(
                f"{folder}: {tokenizer} is not the tokenizer it was trained with; tokenize its dataset again"
            )
        checksums = verified(folder, (WEIGHTS_FILE,), sha256)
        return StoredModel(str(name), folder, config, Weights(folder / WEIGHTS_FILE), data, checksums)
    checksums = verified(folder, (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE), sha256)
    config = config_from_gpt2(folder) if is_transformers(folder) else load_config(folder)
    weights = GPT2Weights(folder, config) if is_transformers(folder) else Weights(folder / WEIGHTS_FILE)
    return StoredModel(str(name), folder, config, weights, folder, checksums)


def open_trained(name: str) -> StoredModel:
    """Open the model that `trained_place` finds; a note on stderr says if that is a checkpoint.

    Raises UserError as `open_model` does, and if a training has no checkpoint yet.
    """
    place = trained_place(name)
    if place != name:
        why = f"no {MODEL} yet; " if Path(name) == MODEL else ""
        print(f"note: {why}this is {place}, the newest checkpoint", file=sys.stderr)
    return open_model(place)


def trained_place(name: str) -> str:
    """The newest checkpoint of a run, if `name` is its folder; else `name`.

    While there is no results/model, that stands for the run that trains now, or for the newest one that is
    not finished. Raises UserError if a training has no checkpoint yet.
    """
    if (Path(name) / RUN_FILE).exists() and not (Path(name) / WEIGHTS_FILE).exists():
        runs = [Path(name)]
    elif Path(name) == MODEL and not MODEL.exists():
        runs = [run for run in runs_folder().glob("*/") if not (run / RUN_FINISHED).exists()]
        runs.sort(key=lambda run: (_is_training(run), run.stat().st_mtime), reverse=True)
    else:
        return name
    newest_first = (path for run in runs for path in reversed(checkpoints_in(run)))
    newest = next((path for path in newest_first if damage(path) is None), None)
    if newest is not None:
        return str(newest)
    if any(map(_is_training, runs)):
        raise UserError(f"model {name}: a training runs, but has no checkpoint yet; try again a little later")
    return name


def _is_training(run: Path) -> bool:
    return holder(run / RUN_LOCK) is not None


def find_model(name: str) -> Path:
    """The folder of a model, downloaded if necessary. Raises UserError if there is no such model."""
    check_name(name)
    place = place_on_hub(name)
    if place is None:
        return Path(name)
    try:
        return download_model(*place)
    except UserError as error:
        if name in PUBLISHED:
            raise
        raise UserError(f"model {name}: no such folder, and on the hub: {error}") from None


class _TruncatedPositions(Weights):
    """Weights whose learned positions end at `block_size`."""

    NAME = "embed.wpe.weight"

    def __init__(self, weights: Weights, block_size: int) -> None:
        self.path = weights.path
        self._weights = weights
        self._block_size = block_size
        self.shapes = dict(weights.shapes)
        if shape := self.shapes.get(self.NAME):
            self.shapes[self.NAME] = (min(shape[0], block_size), *shape[1:])

    def read(self, name: str) -> torch.Tensor:
        tensor = self._weights.read(name)
        return tensor[: self._block_size].clone() if name == self.NAME else tensor

    def name_in_file(self, name: str) -> str:
        return self._weights.name_in_file(name)
