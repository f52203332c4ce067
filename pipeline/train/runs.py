"""Crash-safe training state: one folder for each run, with checkpoints that are complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.paths import RUN_FILE, RUN_FINISHED, RUN_LOCK, checkpoints_in
from pipeline.config.reading import read_json
from pipeline.storage.checksums import damage, read_checked_json, save_folder, write_checked_json
from pipeline.storage.files import write_json, write_text
from pipeline.storage.lock import locked
from pipeline.track.health_csv import HEALTH_FILE
from pipeline.track.wandb import FOLDER as WANDB_FOLDER
from pipeline.train.checkpoint import LOG_FILE, best_step
from pipeline.weights.model_folder import WEIGHTS_FILE

DAMAGED = ".damaged"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept: the `newest` so many; for good, one every `every` steps and that of a step.

    That one is where the cooldown starts: a longer run continues from there.
    """

    newest: int = 2
    every: int | None = None
    cooldown_start: int | None = None

    def forever(self, step: int) -> bool:
        return step > 0 and (
            step == self.cooldown_start or (self.every is not None and step % self.every == 0)
        )


class Run:
    """The folder of one run::

    runs/<key>/run.json         the settings behind the key, and which run's steps it continues
               lock             held by the process that trains
               log.csv          a row for each log step
               health.csv       a row for each layer every log.health_interval steps; no checkpoint has it
               step-<n>/        model.safetensors, optimizer.safetensors, state.json, log.csv, manifest.json
               best/            model.safetensors, state.json, manifest.json
               finished/        metrics.json, log.csv, manifest.json; it exists once the run is finished
               *.damaged        a folder of these that did not verify
               incident.json    the last loss or gradient that was not finite
               tensorboard/, wandb/  what these trackers show; each start writes it again from log.csv
               later.json       samples and the depth curve, for the trackers

    A manifest.json has the checksums of its folder's other files.
    """

    def __init__(self, folder: Path, keep: Keep = Keep()) -> None:
        self.folder = folder
        self.keep = keep
        self.log = folder / LOG_FILE
        self.health = folder / HEALTH_FILE
        self.best = folder / "best"
        self.finished = folder / RUN_FINISHED
        self.about = folder / RUN_FILE

    @contextmanager
    def locked(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Hold the run's lock. If another process has it, call `announce` with a message, then wait."""

        def busy(pid: str) -> None:
            announce(f"process {pid} is training this run; waiting for it (to stop it: kill {pid})")

        with locked(self.folder / RUN_LOCK, busy):
            self._recover()
            yield

    def begin(self, values: dict[str, Any], say: Callable[[str], None] = lambda _: None) -> None:
        """Write run.json, and remove what an attempt left that ended before its first checkpoint."""
        if damage(self.best) is None and best_step(self.best) > 0:
            self._set_aside(self.best, f"{WEIGHTS_FILE}: the checkpoints that go with it are gone", say)
        for path in self.folder.iterdir():
            # A process of a killed attempt may still be writing for W&B.
            if path.name not in (RUN_LOCK, WANDB_FOLDER) and path.suffix != DAMAGED:
                _remove(path)
        write_checked_json(self.about, values)

    def facts(self) -> dict[str, Any]:
        """What `begin` was given. Raises UserError if that file is missing or damaged."""
        remedy = f"restore it from a copy, or move {self.folder} away to train from the start"
        return read_checked_json(self.about, remedy, missing=remedy)

    def restore_facts(self, values: dict[str, Any], say: Callable[[str], None]) -> None:
        """Write run.json again if it is damaged, from the parameters that gave the run its key."""
        try:
            self.facts()
        except UserError as error:
            if self.checkpoints() or self.finished.exists():
                if self.about.exists():
                    aside = self.about.with_name(f"{RUN_FILE}{DAMAGED}")
                    self.about.rename(aside)
                    say(f"{str(error).partition(';')[0]}; set aside as {aside.name}, and written again")
                write_checked_json(self.about, values)

    def newest(self) -> Path | None:
        """The newest checkpoint with correct checksums, or None."""
        return next((folder for folder in reversed(self.checkpoints()) if damage(folder) is None), None)

    def resume_from(self, say: Callable[[str], None]) -> Path | None:
        """The checkpoint to continue from, whose log is the run's log again; None if there is none yet.

        Newer ones that are damaged are set aside, with a message. Raises UserError, and changes nothing, if
        all are damaged, or if the best model is, which continuing needs.
        """
        checkpoint = self.newest()
        damaged = [folder for folder in self.checkpoints() if checkpoint is None or folder > checkpoint]
        if checkpoint is None:
            if damaged:
                raise self._damaged(damaged[-1], str(damage(damaged[-1])))
            return None
        if problem := damage(self.best):
            raise self._damaged(self.best, problem)
        for folder in damaged:
            self._set_aside(folder, str(damage(folder)), say)
        write_text(self.log, (checkpoint / LOG_FILE).read_text(encoding="utf-8"))
        return checkpoint

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write the checkpoint of a step with `write(folder)`, then delete those that need not be kept."""
        save_folder(self.folder / f"step-{step:09d}", write)
        self._delete(self.checkpoints()[: -self.keep.newest])

    def save_best(self, write: Callable[[Path], None]) -> None:
        """Replace the best model."""
        save_folder(self.best, write)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Record the metrics and the log; delete all checkpoints but the newest and the permanent ones."""

        def write(folder: Path) -> None:
            write_json(folder / METRICS_FILE, metrics)
            for table in filter(Path.exists, (self.log, self.health)):
                shutil.copyfile(table, folder / table.name)

        save_folder(self.finished, write)
        self._delete(self.checkpoints()[:-1])

    def metrics(self, say: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
        """The metrics, or None if the run is not finished.

        If what was recorded at the end is damaged, it is set aside with a message: it can be had again from
        the last checkpoint.
        """
        if not self.finished.exists():
            return None
        if problem := damage(self.finished):
            self._set_aside(self.finished, problem, say)
            return None
        return read_json(self.finished / METRICS_FILE)

    def kept(self, metrics: dict[str, Any]) -> Path:
        """The folder with the model that a finished run publishes.

        Whatever else is damaged, such as the optimizer's state, the model can be used. Raises UserError if
        the model is damaged.
        """
        last = next(reversed(self.checkpoints()), self.folder / "step-*")
        best_is_last = metrics["best_step"] == metrics["steps"]
        if metrics["saved"] == "last" or best_is_last:
            folders = [last, self.best] if best_is_last and self.has_best(metrics["steps"]) else [last]
        else:
            folders = [self.best]
        for folder in folders:
            if damage(folder, WEIGHTS_FILE) is None:
                return folder
        raise self._damaged(folders[0], str(damage(folders[0], WEIGHTS_FILE)))

    def has_best(self, step: int) -> bool:
        """Whether the best model is whole, and that of this step."""
        return damage(self.best) is None and best_step(self.best) == step

    def note_incident(self, facts: dict[str, Any]) -> Path:
        """Record a step that is not finite, with the checkpoint before it. Returns the file."""
        path, newest = self.folder / "incident.json", self.newest()
        write_json(path, facts | {"checkpoint": newest and newest.name})
        return path

    def checkpoints(self) -> list[Path]:
        """The folders of all checkpoints, whole or not, oldest first."""
        return checkpoints_in(self.folder)

    def _delete(self, checkpoints: list[Path]) -> None:
        for folder in checkpoints:
            if not self.keep.forever(int(folder.name.removeprefix("step-"))):
                shutil.rmtree(folder)

    def _set_aside(self, folder: Path, problem: str, say: Callable[[str], None]) -> None:
        aside = folder.with_suffix(DAMAGED)
        if aside.exists():
            _remove(aside)
        folder.rename(aside)
        say(f"{folder}/{problem}; set aside as {aside.name}")

    def _damaged(self, folder: Path, problem: str) -> UserError:
        return UserError(
            f"{folder}/{problem}; restore it from a copy, or move {self.folder} away to train from the start"
        )

    def _recover(self) -> None:
        """Clean up after a killed process.

        Replacing a folder takes two renames. If only the first one happened, undo it.
        """
        for old in self.folder.glob("*.old"):
            replaced = old.with_suffix("")
            if not replaced.exists():
                old.rename(replaced)
            else:
                _remove(old)
        for unfinished in self.folder.glob("*.tmp"):
            _remove(unfinished)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
