"""A checkpoint: the weights, the optimizer's state, the progress and the log of a run, in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.distributed.sharded import local, piece, whole
from pipeline.distributed.world import world
from pipeline.model.gpt import GPT
from pipeline.optim.state import load_named_state, named_state
from pipeline.storage.files import write_json, write_text
from pipeline.weights.model_folder import WEIGHTS_FILE, save_weights

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
LOG_FILE = "log.csv"


@dataclass
class Interval:
    """Sums since the last training loss in the log. `reports` counts how often each figure was reported."""

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
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, validation loss)
    skipped: int = 0  # steps left out because they were not finite
    grad_norm: float | None = None
    scaler: dict[str, float] = field(default_factory=dict)
    interval: Interval = field(default_factory=Interval)

    @property
    def best(self) -> tuple[int, float]:
        """Step and loss of the first best evaluation."""
        return min(self.evaluations, key=lambda evaluation: evaluation[1], default=(-1, math.inf))


class Snapshot:
    """Copies of a training's tensors in the CPU's memory, which is used again for the next one.

    So a checkpoint can be written while training goes on.
    """

    def __init__(self) -> None:
        self._copies: dict[str, torch.Tensor] = {}

    def take(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies of `tensors`, valid until the next call; on a rank that writes no files, none.

        Tensors of which each rank has a piece are gathered one by one.
        """
        for name, tensor in tensors.items():
            tensor = whole(tensor.detach())
            if not world().is_main:
                continue
            copy = self._copies.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            copy.copy_(tensor)
        return {name: self._copies[name] for name in tensors if name in self._copies}


def checkpoint_writer(
    snapshot: Snapshot, model: GPT, optimizer: torch.optim.Optimizer, state: TrainState, log: str
) -> Callable[[Path], None]:
    """A function that writes the checkpoint of this moment into a folder, which exists and is empty."""
    weights = snapshot.take(model.state_dict())
    moments = snapshot.take(named_state(optimizer))
    progress = asdict(state)

    def write(folder: Path) -> None:
        save_weights(weights, folder)
        save_file(moments, folder / OPTIMIZER_FILE)
        write_json(folder / STATE_FILE, progress)
        write_text(folder / LOG_FILE, log)

    return write


def load_progress(folder: Path, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore the optimizer of a model that has the checkpoint's weights, and return the progress."""
    tensors = load_file(folder / OPTIMIZER_FILE) if world().is_main else None
    load_named_state(optimizer, world().named_from_main(tensors))
    return world().from_main(lambda: read_state(folder))


def read_state(folder: Path) -> TrainState:
    """The progress at a checkpoint."""
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    values["interval"] = Interval(**values["interval"])
    values["evaluations"] = [(step, loss) for step, loss in values["evaluations"]]
    return TrainState(**values)


def best_writer(snapshot: Snapshot, model: GPT, step: int, val_loss: float) -> Callable[[Path], None]:
    """A function that writes the weights of this moment into a folder, with step and validation loss."""
    weights = snapshot.take(model.state_dict())

    def write(folder: Path) -> None:
        save_weights(weights, folder)
        write_json(folder / STATE_FILE, {"step": step, "val_loss": val_loss})

    return write


def load_best(folder: Path, model: GPT) -> None:
    """Put the weights of the best model into `model`."""
    take_weights(model, load_file(folder / WEIGHTS_FILE) if world().is_main else None)


def take_weights(model: GPT, weights: Mapping[str, torch.Tensor] | None) -> None:
    """Give the model on each rank the main rank's weights; the other ranks pass None."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in world().named_from_main(weights):
            local(own[name]).copy_(piece(tensor, own[name]))


def best_step(folder: Path) -> int:
    """The step of the best model in `folder`."""
    step: int = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["step"]
    return step
