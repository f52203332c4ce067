"""Crash-safe training state: one folder per run key, with checkpoints that are complete or absent.

The run key is a hash of everything that determines the run's result. The same key continues an interrupted
run or reuses a finished one; another key starts a new run. `Run` describes the layout.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tokenize import COMMENT, DEDENT, INDENT, NEWLINE, NL, STRING, generate_tokens
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.paths import RUN_FILE
from pipeline.storage.checksums import damage, save_folder
from pipeline.storage.files import write_json
from pipeline.storage.lock import locked
from pipeline.weights.model_folder import WEIGHTS_FILE

PACKAGE = Path(__file__).parents[1]

# The code that determines the training steps and the choice of the best model: changing what it does changes
# the run key. Code for logs, storage, reports and checks before the first step is left out.
SOURCES = (
    "evaluate/evaluation.py",
    "evaluate/loss.py",
    "model",
    "optim",
    "runtime/compiled.py",
    "runtime/device.py",
    "tokens/batches.py",
    "tokens/keyed_random.py",
    "tokens/shards.py",
    "train/checkpoint.py",
    "train/init_from.py",
    "train/loop.py",
    "weights/gpt2.py",
    "weights/model_folder.py",
    "weights/open.py",
)

DAMAGED = ".damaged"
BLOCK = {INDENT: "{", DEDENT: "}", NEWLINE: ";"}  # so that the width of an indentation does not matter


def run_key(**ingredients: Any) -> str:
    """A short hash of everything that determines a run's result: the ingredients and the training code."""
    files = sorted(path for source in SOURCES for path in _python_files(PACKAGE / source))
    code = {str(path.relative_to(PACKAGE)): _without_comments(path) for path in files}
    text = json.dumps({"code": code, **ingredients}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Run:
    """The folder of one run::

    runs/<key>/run.json         the settings behind the key
               lock             held by the process that trains
               log.csv          a row per log step, at least up to the newest checkpoint
               step-<n>/        model.safetensors, optimizer.safetensors, state.json, manifest.json
               step-<n>.damaged a checkpoint that did not verify
               best/            model.safetensors, state.json, manifest.json
               finished.json    the metrics; it exists once the run is finished
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.csv"
        self.best = folder / "best"
        self._finished = folder / "finished.json"

    @contextmanager
    def locked(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Hold the run's lock. If another process has it, call `announce` with a message, then wait."""

        def busy(pid: str) -> None:
            announce(f"process {pid} is training this run; waiting for it (to stop it: kill {pid})")

        with locked(self.folder / "lock", busy):
            self._recover()
            yield

    def begin(self, values: dict[str, Any]) -> None:
        """Write run.json, and remove what an attempt left that ended before its first checkpoint."""
        for path in self.folder.iterdir():
            if path.name != "lock" and path.suffix != DAMAGED:
                _remove(path)
        write_json(self.folder / RUN_FILE, values)

    def newest(self) -> Path | None:
        """The newest checkpoint with correct checksums, or None."""
        return next((folder for folder in reversed(self._checkpoints()) if damage(folder) is None), None)

    def resume_from(self, say: Callable[[str], None]) -> Path | None:
        """The checkpoint to continue from; None if there is none yet.

        Newer ones that are damaged are set aside, with a message. Raises UserError, and changes nothing, if
        all are damaged, or if the best model is, which continuing needs.
        """
        checkpoint = self.newest()
        damaged = [folder for folder in self._checkpoints() if checkpoint is None or folder > checkpoint]
        if checkpoint is None:
            if damaged:
                raise self._damaged(damaged[-1], str(damage(damaged[-1])))
            return None
        if problem := damage(self.best):
            raise self._damaged(self.best, problem)
        for folder in damaged:
            problem, aside = damage(folder), folder.with_suffix(DAMAGED)
            if aside.exists():
                _remove(aside)
            folder.rename(aside)
            say(f"{folder}/{problem}; set aside as {aside.name}")
        return checkpoint

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write the checkpoint of a step with `write(folder)`, then delete all but the newest two."""
        save_folder(self.folder / f"step-{step:09d}", write)
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old)

    def save_best(self, write: Callable[[Path], None]) -> None:
        """Replace the best model."""
        save_folder(self.best, write)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Record the metrics, and delete all checkpoints but the newest."""
        for old in self._checkpoints()[:-1]:
            shutil.rmtree(old)
        write_json(self._finished, metrics)

    def metrics(self) -> dict[str, Any] | None:
        """The metrics, or None if the run is not finished. Raises UserError if they are damaged."""
        if not self._finished.exists():
            return None
        try:
            metrics: dict[str, Any] = json.loads(self._finished.read_text(encoding="utf-8"))
        except ValueError:
            raise self._damaged(self._finished.parent, f"{self._finished.name}: not JSON") from None
        return metrics

    def kept(self, which: str) -> Path:
        """The folder of a finished run's `best` or `last` model. Raises UserError if the model is damaged.

        Whatever else is damaged, such as the optimizer's state, the model can be used.
        """
        last = next(reversed(self._checkpoints()), self.folder / "step-*")
        folder = self.best if which == "best" else last
        if problem := damage(folder, WEIGHTS_FILE):
            raise self._damaged(folder, problem)
        return folder

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

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-?????????"))


def _without_comments(path: Path) -> str:
    """A module's tokens without comments and docstrings, which determine no step."""
    with tokenize.open(path) as file:
        tokens = [token for token in generate_tokens(file.readline) if token.type not in (COMMENT, NL)]
    words: list[str] = []
    begins, skip = True, False
    for token, following in pairwise(tokens):
        alone = begins and token.type == STRING and following.type == NEWLINE
        if not alone and not skip:
            words.append(BLOCK.get(token.type, token.string))
        begins, skip = token.type in BLOCK, alone  # the end of a docstring's line goes with it
    return " ".join(words)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _python_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
