"""The progress of a run: what a checkpoint holds besides the weights and the optimizer's tensors."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.storage.files import write_json

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

    def save(self, folder: Path) -> None:
        write_json(folder / STATE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return cls(**values | {"interval": Interval(**values["interval"])})
