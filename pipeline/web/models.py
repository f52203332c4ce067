"""The models that a server has, by name; each is opened again when there is a newer one."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from pipeline.config.errors import UserError, one_line
from pipeline.config.paths import MODEL, checkpoints_in, runs_folder
from pipeline.model.gpt import GPT
from pipeline.model.load import load_model
from pipeline.serve.batch import Batch, Prompt
from pipeline.serve.drawing import Choice
from pipeline.serve.sampling import check_memory
from pipeline.tokens.tokenizer_json import END_OF_TEXT
from pipeline.tokens.tokenizers import Tokenizer
from pipeline.weights.open import StoredModel, open_trained


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory."""

    name: str  # as the user gave it, and as requests name it
    stored: StoredModel
    gpt: GPT
    tokenizer: Tokenizer
    device: torch.device
    loaded_at: float = field(default_factory=time.time)  # seconds since 1970

    @cached_property
    def token_names(self) -> list[str]:
        """What the API calls each id: its text, or its bytes, if they are no text."""
        return [_name(token) for token in self.tokenizer.vocabulary]

    @property
    def loops(self) -> bool:
        """Whether a request may choose the depth."""
        return self.stored.config.loops

    @property
    def deepest(self) -> int:
        """The largest depth that the depth curve shows; more are possible, but were never trained."""
        return self.gpt.depths[-1]


class ServedModel:
    """A model by name: its folder may get new weights, or a training a new checkpoint."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Raises UserError if there is no such model, or if it is damaged."""
        self._device = device
        self._seen = _trace(name)
        self.name = name
        self.current = self._load()

    def refresh(self) -> None:
        """Load the model again if its files have changed. What is not whole is left for the next time."""
        seen = _trace(self.name)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.current = self._load()
        except (UserError, OSError, RuntimeError) as error:  # PyTorch's when memory is short
            print(f"note: {self.name} stays as it was: {one_line(str(error))}", file=sys.stderr)

    def _load(self) -> LoadedModel:
        stored = open_trained(self.name)
        gpt, tokenizer = load_model(stored, self._device), stored.tokenizer()
        # So that the first request is as fast as the others; and weights that diverged are refused.
        Batch(gpt, tokenizer.vocab_size, None, self._device).step([Prompt([0], [Choice()])])
        return LoadedModel(self.name, stored, gpt, tokenizer, self._device)


def open_models(names: Sequence[str], device: torch.device, streams: int) -> dict[str, ServedModel]:
    """The models by name, to write so many texts at a time.

    Raises UserError if there is no such model, if it is damaged, or if its texts do not fit into memory.
    """
    models = {name: ServedModel(name, device) for name in names}
    for model in models.values():
        config = model.current.stored.config
        check_memory(config, 1, streams, config.block_size, device, "streams")
    return models


def _name(token: bytes) -> str:
    try:
        return token.decode() or END_OF_TEXT
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _trace(name: str) -> tuple[tuple[str, int], ...]:
    """What changes when the model does: its files, and the checkpoints that may stand for it."""
    folders = [Path(name), *checkpoints_in(Path(name))]
    if Path(name) == MODEL:
        folders += (checkpoint for run in runs_folder().glob("*/") for checkpoint in checkpoints_in(run))
    traces = []
    for path in (path for folder in folders for path in (folder, *folder.glob("*.safetensors"))):
        try:
            traces.append((str(path), path.stat().st_mtime_ns))
        except OSError:  # not there, or gone since
            continue
    return tuple(sorted(traces))
