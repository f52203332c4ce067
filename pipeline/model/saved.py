"""A model as a folder: `model.safetensors`, `config.json` and the tokenizer. No pickle anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.model.build import build_gpt
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.validation import validate

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class _NoInitialization(TorchFunctionMode):
    """Leaves new parameters as they are: they are about to be loaded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def save_weights(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write tensors to `model.safetensors`: the same tensors always give the same bytes."""
    save_file(
        {name: state[name].detach().contiguous().cpu() for name in sorted(state)}, folder / WEIGHTS_FILE
    )


def save_config(config: GPTConfig, folder: Path) -> None:
    write_json(folder / CONFIG_FILE, config.model_dump())


def load_weights(model: GPT, path: Path) -> None:
    """Fill `model` from a safetensors file, on the device it is on.

    Raises UserError naming what does not fit; the model is untouched then.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train a model first, or name another folder") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    own = model.state_dict()
    misshapen = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    for problem, names in (
        ("lacks", own.keys() - state.keys()),
        ("has unknown", state.keys() - own.keys()),
        ("has other shapes for", misshapen),
    ):
        if names:
            raise UserError(f"{path}: {problem} {', '.join(sorted(names)[:5])}; it belongs to another model")
    if next(model.parameters()).is_meta:
        # In memory of its own a tensor is aligned as in training, and multiplies to the same bits.
        state = {name: tensor.clone() for name, tensor in state.items()}
        model.load_state_dict(state, assign=True)
    else:
        model.load_state_dict(state)


def load_config(folder: Path) -> GPTConfig:
    """The config of the model saved in `folder`. Raises UserError if there is none."""
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train a model first, or name another folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    return validate(GPTConfig, values, path)


def load_model(folder: Path, device: torch.device | str = "cpu") -> GPT:
    """The model saved in `folder`, in evaluation mode. Raises UserError if there is none."""
    config = load_config(folder)
    with torch.device("meta"), _NoInitialization():
        model = build_gpt(config)
    load_weights(model, folder / WEIGHTS_FILE)
    return model.to(device).eval()
