"""Finds an earlier run whose first steps are those of a new one, and continues from its checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.storage.checksums import damage
from pipeline.storage.files import write_json, write_text
from pipeline.track.csv_log import format_rows, without_val_loss
from pipeline.train.checkpoint import (
    LOG_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    TrainState,
    read_state,
)
from pipeline.train.identity import Identity
from pipeline.train.runs import Run
from pipeline.weights.model_folder import WEIGHTS_FILE


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another run that a run continues from."""

    run: Run
    checkpoint: Path
    state: TrainState  # with the evaluations that the new run would have made
    best: Path | None  # None: the best model is that of the checkpoint


def recorded_identity(run: Run) -> Identity | None:
    """What determined a run, as it recorded it; None for a run of an older version."""
    try:
        return Identity(**run.facts()["identity"])
    except (UserError, KeyError, TypeError):
        return None


def find_origin(identity: Identity, runs_folder: Path, say: Callable[[str], None]) -> Origin | None:
    """The furthest checkpoint of another run from which a new run ends as if it had begun at step 0.

    If an earlier run took the same steps, and yet none of its checkpoints serves, `say` is called with why.
    """
    found, reasons = [], []
    for run, other in _others(identity, runs_folder):
        for checkpoint in reversed(run.checkpoints()):
            if damage(checkpoint) is None:
                state = read_state(checkpoint)
                if not identity.takes_the_steps_of(other, state.step):
                    continue
                origin = _origin(identity, other, run, checkpoint, state)
                if isinstance(origin, str):
                    reasons.append(f"{run.folder} took the same steps, but {origin}")
                    continue
                found.append(origin)
                break
    if found:
        return max(found, key=lambda origin: origin.state.step)
    if reasons:
        say(f"{reasons[0]}; training from the start")
    return None


def find_run_of_other_code(identity: Identity, runs_folder: Path) -> tuple[Run, list[str]] | None:
    """The newest run with a checkpoint that differs only in its code, and the files that were changed."""
    found = [
        (run.about.stat().st_mtime, run, identity.changed_code(other))
        for run, other in _others(identity, runs_folder)
        if other.code != identity.code
        and replace(other, code=identity.code, after=None) == identity
        and run.newest() is not None
    ]
    if not found:
        return None
    _, run, changed = max(found, key=lambda one: one[0])
    return run, changed


def find_continued(identity: Identity, runs_folder: Path) -> Identity | None:
    """The run that already goes on with the steps of a run of other code."""
    mixed = (other for _, other in _others(identity, runs_folder) if replace(other, after=None) == identity)
    return next(mixed, None)


def with_best(run: Run, checkpoint: Path, state: TrainState) -> Origin | None:
    """A checkpoint with the best model of its evaluations; None if the run does not have that any more."""
    step = state.best[0]
    if step == state.step:
        return Origin(run, checkpoint, state, None)
    return Origin(run, checkpoint, state, run.best) if run.has_best(step) else None


def continue_from(origin: Origin, run: Run) -> None:
    """Give `run` the origin's checkpoint and best model, with the log as it would be now."""

    def checkpoint(folder: Path) -> None:
        for name in (WEIGHTS_FILE, OPTIMIZER_FILE):
            _link(origin.checkpoint / name, folder / name)
        write_json(folder / STATE_FILE, asdict(origin.state))
        write_text(folder / LOG_FILE, _log(origin))

    def best(folder: Path) -> None:
        _link((origin.best or origin.checkpoint) / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        step, val_loss = origin.state.best
        write_json(folder / STATE_FILE, {"step": step, "val_loss": val_loss})

    with contextlib.suppress(FileNotFoundError):  # it was not measured
        shutil.copyfile(origin.run.health, run.health)
    run.save_best(best)
    run.save(origin.state.step, checkpoint)


def _others(identity: Identity, runs_folder: Path) -> Iterator[tuple[Run, Identity]]:
    for folder in sorted(runs_folder.glob("*/")):
        run = Run(folder)
        other = recorded_identity(run)
        if other is not None and folder.name != identity.key:
            yield run, other


def _origin(
    identity: Identity, other: Identity, run: Run, checkpoint: Path, state: TrainState
) -> Origin | str:
    """The origin, or why this checkpoint is none."""
    train = identity.train
    last = 0 if train["eval_only"] else train["max_iters"]
    if state.step > last:
        return f"its checkpoint is at step {state.step:,}, after the last one now ({last:,})"
    if train["eval_iters"] != other.train["eval_iters"]:
        return (
            f"it was evaluated on {_batches(other.train['eval_iters'])}, not {_batches(train['eval_iters'])}"
        )
    losses = dict(state.evaluations)
    due = range(0, state.step + 1, train["eval_interval"])
    missing = [step for step in due if step not in losses]
    if missing:
        return f"it was not evaluated after step {missing[0]:,}, as train.eval_interval asks"
    kept = replace(state, evaluations=[(step, losses[step]) for step in due])
    return with_best(run, checkpoint, kept) or (
        f"its best model is not the one of step {kept.best[0]:,}, which it would be now"
    )


def _batches(number: int | None) -> str:
    return "the whole split" if number is None else f"{number} batches"


def _log(origin: Origin) -> str:
    """The log at the checkpoint, without evaluations that the new run would not have made."""
    text = (origin.checkpoint / LOG_FILE).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    evaluated = {step for step, _ in origin.state.evaluations}
    kept = [row if int(row["step"]) in evaluated else without_val_loss(row) for row in rows]
    return format_rows([row for row in kept if row is not None], text.partition("\n")[0].split(","))


def _link(source: Path, target: Path) -> None:
    """A second name for a file that nobody writes into; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
