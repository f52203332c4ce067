"""Picks and opens the trackers of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError, one_line
from pipeline.config.params import Params
from pipeline.config.paths import LOG, MODEL, RECORD, runs_folder
from pipeline.config.reading import read_json
from pipeline.storage.checksums import read_checked_json, write_checked_json
from pipeline.storage.lock import locked
from pipeline.track.apart import Apart
from pipeline.track.console import Console, say
from pipeline.track.csv_log import CsvLog, read_log
from pipeline.track.health_csv import HEALTH_FILE, HealthCsv, read_health
from pipeline.track.tracker import Row, Story, Tracker

LATER_FILE = "later.json"  # what is found out about a run after its training

Note = Callable[[str], None]


def open_trackers(folder: Path, params: Params, step: int) -> Trackers:
    """What shows the run in `folder`, which continues at `step`: CSV files, `log.trackers` and the screen."""
    train = params.train
    tokens = train.batch_size * train.gradient_accumulation_steps * params.model.block_size
    console = Console(train.max_iters, step, tokens)
    files: list[Tracker] = [CsvLog(folder / LOG.name)]
    if params.log.health_interval is not None:
        files.append(HealthCsv(folder / HEALTH_FILE, step))
    return Trackers([*files, *_others(folder, params, console.note)], console)


def show_later(weights: str, params: Params, found: dict[str, Any]) -> None:
    """Show samples or a depth curve of the trained model in the trackers of its run, if that is still there.

    `weights` is the sha256 of the model that they are of. A failure is a warning.
    """
    if not RECORD.exists() or not TRACKERS.keys() & {*params.log.trackers}:
        return
    try:
        record = read_json(RECORD)
        folder = runs_folder() / record["run"]
        if folder.is_dir() and record["files"][f"{MODEL}/model.safetensors"] == weights:
            with locked(folder / "later.lock", busy=lambda _: None):  # two stages may do so at once
                write_checked_json(folder / LATER_FILE, _later(folder) | found)
                for tracker in _others(folder, params, say):
                    tracker.close()
    except Exception as error:
        say(one_line(f"warning: the trackers of the run do not show this: {error}"))


def _others(folder: Path, params: Params, note: Note) -> list[Apart]:
    """The trackers of a run besides its CSV log, each of which shows what is known of the run up to now."""
    names = list(dict.fromkeys(name for name in params.log.trackers if name in TRACKERS))
    if not names:
        return []
    later, log = _later(folder), params.log
    story = Story(
        folder=folder,
        name=log.wandb_run_name or f"{params.data.dataset}-{folder.name[:8]}",
        params=params,
        rows=_joined(read_log(folder / LOG.name), read_health(folder / HEALTH_FILE)),
        samples=later.get("samples", []),
        depth_curve={int(depth): loss for depth, loss in later.get("depth_curve", {}).items()},
    )
    return [Apart(name, partial(TRACKERS[name], story, note), note) for name in names]


def _joined(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Rows of the same step as one, in order of steps."""
    by_step: dict[Any, Row] = {}
    for row in (*rows, *others):
        by_step[row["step"]] = {**by_step.get(row["step"], {}), **row}
    return [by_step[step] for step in sorted(by_step)]


def _later(folder: Path) -> dict[str, Any]:
    """What stages have found out about a run; nothing if that is damaged, because they find it out again."""
    try:
        return read_checked_json(folder / LATER_FILE, "remove it")
    except UserError:
        return {}


def _tensorboard(story: Story, note: Note) -> Tracker:
    from pipeline.track.tensorboard import TensorBoard

    return TensorBoard(story)


def _wandb(story: Story, note: Note) -> Tracker:
    from pipeline.track.wandb import WandB

    return WandB(story, note)


# What log.trackers can name besides csv, which each run has.
TRACKERS: dict[str, Callable[[Story, Note], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}


class Trackers:
    """Passes each row to several trackers; a `with` block closes them."""

    def __init__(self, trackers: Sequence[Tracker], console: Console | None) -> None:
        """Without a console, nothing is shown on the screen."""
        self._console = console
        self._all = [*trackers, *([] if console is None else [console])]

    def log(self, row: Row) -> None:
        for tracker in self._all:
            tracker.log(row)

    def tick(self, step: int) -> None:
        """Show that another step was taken, between two rows."""
        if self._console is not None:
            self._console.tick(step)

    def note(self, text: str) -> None:
        """Print a line on the screen."""
        if self._console is not None:
            self._console.note(text)

    def close(self) -> None:
        for tracker in self._all:
            tracker.close()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
