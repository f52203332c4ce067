"""Our model format: `model.safetensors`, `config.json`, the tokenizer and their checksums. No pickles."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.reading import check_file, read_json
from pipeline.config.validation import validate
from pipeline.storage.checksums import MANIFEST_FILE, damage, read_manifest, sha256_file
from pipeline.storage.files import write_json

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
NO_MODEL = "train a model first, or name another folder"


def verified(
    folder: Path, names: tuple[str, ...], sha256: Callable[[Path], str] = sha256_file
) -> Mapping[str, str]:
    """The recorded checksums of these files, which they have; nothing if the folder has no manifest.

    Raises UserError if one of them has another checksum.
    """
    if not (folder / MANIFEST_FILE).exists():
        return {}
    if problem := damage(folder, *names, sha256=sha256):
        raise UserError(
            f"{folder}/{problem}; make or copy the model again (if you changed it yourself, remove "
            f"{folder / MANIFEST_FILE})"
        )
    recorded = read_manifest(folder)
    return {name: recorded[name] for name in names}


class Weights:
    """The tensors of a safetensors file, read one by one, so that the file is never in memory as a whole."""

    def __init__(self, path: Path) -> None:
        """Read the tensors' names and shapes. Raises UserError if the file is missing or damaged."""
        self.path = path
        check_file(path, missing=NO_MODEL)
        try:
            with safe_open(path, framework="pt") as file:
                self.shapes: Mapping[str, tuple[int, ...]] = {
                    name: tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except SafetensorError as error:
            raise UserError(f"{path}: damaged: {error}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{path}: cannot be read ({reason}); put the model's weights there") from None

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into its own memory, aligned as in training, so that results are bit-identical."""
        with safe_open(self.path, framework="pt") as file:  # reopened, or what was read stays in memory
            return file.get_tensor(name).clone()

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def name_in_file(self, name: str) -> str:
        """What the file calls our parameter `name`, for error messages."""
        return name


def save_weights(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write tensors to `model.safetensors`: the same tensors always give the same bytes."""
    write_tensors(
        {name: state[name].detach().contiguous().cpu() for name in sorted(state)}, folder / WEIGHTS_FILE
    )


def write_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the usual permissions of new files; safetensors makes it private."""
    save_file(tensors, path, metadata)
    mask = os.umask(0)  # the only way to read the umask is to set it
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def save_config(config: GPTConfig, folder: Path) -> None:
    write_json(folder / CONFIG_FILE, config.model_dump())


def load_config(folder: Path) -> GPTConfig:
    """The config of the model saved in `folder`. Raises UserError if it is missing or invalid."""
    path = folder / CONFIG_FILE
    values = read_config(path)
    if "moe_dummy" not in values:  # saved when every mixture had a dummy
        values["moe_dummy"] = values.get("moe", False)
    return validate(GPTConfig, values, path)


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json. Raises UserError if it is missing or not a JSON object."""
    return read_json(path, missing=NO_MODEL)
