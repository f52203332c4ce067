"""A checkpoint: the weights, the optimizer's state and the progress of a run, in one folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.model.gpt import GPT
from pipeline.model.load import load_weights
from pipeline.optim.state import load_named_state, named_state
from pipeline.storage.files import write_json
from pipeline.weights.model_folder import WEIGHTS_FILE, Weights, save_weights

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


@dataclass
class Interval:
    """Sums since the last log row. `reports` counts how often each figure was reported."""

    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    figures: dict[str, float | list[float]] = field(default_factory=dict)
    reports: dict[str, int] = field(default_factory=dict)


@dataclass
class TrainState:
    """Progress that a resumed run restores. It has no random state, because each step seeds its own."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_val_loss: float = math.inf
    grad_norm: float | None = None
    scaler: dict[str, float] = field(default_factory=dict)
    interval: Interval = field(default_factory=Interval)


def save_checkpoint(folder: Path, model: GPT, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Write a checkpoint into `folder`, which exists and is empty."""
    save_weights(model.state_dict(), folder)
    save_file(named_state(optimizer), folder / OPTIMIZER_FILE)
    write_json(folder / STATE_FILE, asdict(state))


def load_checkpoint(folder: Path, model: GPT, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore the model and the optimizer, and return the progress."""
    load_weights(model, Weights(folder / WEIGHTS_FILE))
    load_named_state(optimizer, load_file(folder / OPTIMIZER_FILE))
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return TrainState(**values | {"interval": Interval(**values["interval"])})


def save_best(folder: Path, model: GPT, step: int, val_loss: float) -> None:
    """Write the weights of the best model so far into `folder`, with the step and loss they were kept for."""
    save_weights(model.state_dict(), folder)
    write_json(folder / STATE_FILE, {"step": step, "val_loss": val_loss})


def load_best(folder: Path, model: GPT) -> None:
    """Put the weights of the best model into `model`."""
    load_weights(model, Weights(folder / WEIGHTS_FILE))


def best_step(folder: Path) -> int:
    """The step of the best model in `folder`."""
    step: int = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["step"]
    return step
