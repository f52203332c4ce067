"""Picks and opens the trackers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.params import Params
from pipeline.track.console import Console
from pipeline.track.csv_log import CsvLog
from pipeline.track.tracker import Row, Tracker


def open_trackers(log: Path, params: Params, step: int) -> Trackers:
    """The trackers of a run that continues at `step`: a CSV log and the screen."""
    train = params.train
    tokens = train.batch_size * train.gradient_accumulation_steps * params.model.block_size
    return Trackers([CsvLog(log)], Console(train.max_iters, step, tokens))


class Trackers:
    """Passes each row to several trackers; a `with` block closes them."""

    def __init__(self, trackers: Sequence[Tracker], console: Console) -> None:
        self._console = console
        self._all = [*trackers, console]

    def log(self, row: Row) -> None:
        for tracker in self._all:
            tracker.log(row)

    def tick(self, step: int) -> None:
        """Show that another step was taken, between two rows."""
        self._console.tick(step)

    def note(self, text: str) -> None:
        """Print a line on the screen."""
        self._console.note(text)

    def close(self) -> None:
        for tracker in self._all:
            tracker.close()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
