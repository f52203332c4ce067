"""The tracker interface: it takes the figures of a run, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

COLUMNS = (
    "step",
    "tokens",
    "train_loss",
    "val_loss",
    "val_bpb",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "seconds",
)

Row = Mapping[str, float | int | None]


class Tracker(Protocol):
    """Takes one row per log step: of COLUMNS and any further figures of the model, those that were measured.

    The last step may come twice; the second row completes the first.
    """

    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...
