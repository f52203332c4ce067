"""The tracker interface: it takes the figures of a run, row by row."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.config.params import Params

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

HEALTH = "health/"  # begins the names of figures of single layers, which are many

Row = Mapping[str, float | int | None]


class Tracker(Protocol):
    """Takes one row per log step: of COLUMNS and any further figures of the model, those that were measured.

    The last step may come twice; the second row completes the first.
    """

    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Story:
    """What is known of a run when a tracker is opened: all that it has to show up to now.

    A tracker shows the whole story each time, in place of what it held of the run before. So it has each step
    once, however often the run was killed, and also the steps that the run took over from an earlier one.
    """

    folder: Path  # runs/<key>/
    name: str
    params: Params
    rows: Sequence[Row] = ()  # of the log
    samples: Sequence[str] = ()
    depth_curve: Mapping[int, float] = field(default_factory=dict)  # validation loss after so many steps
    opened: float = field(default_factory=time.time)

    @property
    def key(self) -> str:
        """The key of the run, which is also its id at a server."""
        return self.folder.name

    def when(self, row: Row) -> float:
        """When a row was logged, had the training gone on without a break; in seconds since 1970."""
        last = (self.rows[-1].get("seconds") if self.rows else None) or 0.0
        return self.opened - last + (row.get("seconds") or 0.0)
