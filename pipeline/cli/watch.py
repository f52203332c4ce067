"""Follow the run that trains now, from another terminal."""

from __future__ import annotations

import csv
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.paths import RECORD, RESULTS, RUN_LOCK, SAMPLES, runs_folder
from pipeline.config.reading import read_json
from pipeline.report.text_plot import text_plot
from pipeline.serve.samples import read_samples
from pipeline.storage.checksums import read_manifest
from pipeline.storage.lock import holder
from pipeline.track.console import Progress, columns, writes_unicode
from pipeline.train.runs import Run
from pipeline.weights.model_folder import WEIGHTS_FILE

SECONDS = 1.0  # between two looks
SECONDS_BETWEEN_LINES = 5.0  # without a terminal
CURVE_LINES = 8
SAMPLE_LINES = 3
RECENT = 10  # rows of the log that tell the speed
PATIENCE = 5.0  # seconds in which the end of a run is published


def main() -> None:
    """Show progress, losses, time left, the curve and the last sample until the run ends.

    It follows the newest run that trains here, also an experiment's. Ctrl-C ends only the watching.
    """
    run = active_run()
    if run is None:
        print("\n".join(["nothing is training now", *_last_finished()]))
        return
    try:
        _follow(run)
    except KeyboardInterrupt:
        print("\nno longer watching; the training goes on")
        return
    print(_ending(run))


def active_run() -> Run | None:
    """The run that a process trains now; of several the one that began last; None if there is none."""
    active = [run for run in _runs() if holder(run.folder / RUN_LOCK) is not None]
    return max(active, key=lambda run: _time(run.about), default=None)


def _follow(run: Run) -> None:
    """Show the run until its lock is free: in place on a terminal, else by a line now and then."""
    terminal = sys.stdout.isatty()
    shown, last_line, last_time = 0, "", -math.inf
    while (process := holder(run.folder / RUN_LOCK)) is not None:
        if terminal:
            lines = list(_view(run, process))
            up = f"\x1b[{shown}A" if shown else ""
            sys.stdout.write(f"{up}\r\x1b[J" + "\n".join(lines) + "\n")
            shown = len(lines)
        elif time.monotonic() - last_time > SECONDS_BETWEEN_LINES and (line := _line(run)) != last_line:
            sys.stdout.write(f"{line}\n")
            last_line, last_time = line, time.monotonic()
        sys.stdout.flush()
        time.sleep(SECONDS)


def _view(run: Run, process: str) -> Iterator[str]:
    """What a terminal shows, in lines that fit."""
    width, unicode = columns(sys.stdout), writes_unicode(sys.stdout)
    yield f"{run.folder}: process {process}"[: width - 1]
    rows = _rows(run)
    if not rows:
        yield "starting"
        return
    yield _progress(run, rows).line(width, unicode)
    yield from curve(rows, width, unicode)
    yield from (line[: width - 1] for line in _sample(run))


def curve(rows: list[dict[str, float]], width: int, unicode: bool) -> list[str]:
    """The training loss as a curve, the validation loss as marks."""
    train, val = (
        [(row["step"], row[name]) for row in rows if name in row] for name in ("train_loss", "val_loss")
    )
    plot = text_plot(train, val, min(width, 100), CURVE_LINES, unicode)
    mark = "●" if unicode else "o"
    return [*plot, f"loss while training, and {mark} validation loss"[: width - 1]] if plot else []


def _line(run: Run) -> str:
    rows = _rows(run)
    if not rows:
        return f"{run.folder}: starting"
    progress = _progress(run, rows)
    return f"step {progress.step:,}/{progress.steps:,}  {progress.figures()}"


def _progress(run: Run, rows: list[dict[str, float]]) -> Progress:
    """The progress by the newest row of the log; the time left shrinks until the next one."""
    progress = Progress(0, _steps(run))
    for row in rows:
        progress.take(row)
    speeds = [row["tokens_per_second"] for row in rows[-RECENT:] if row.get("tokens_per_second")]
    if speeds and progress.step:
        tokens_per_step = rows[-1]["tokens"] / progress.step
        seconds_per_step = tokens_per_step * statistics.fmean(1 / speed for speed in speeds)
        since_row = min(
            time.time() - _time(run.log), seconds_per_step * (progress.step - rows[-2:][0]["step"])
        )
        progress.seconds_left = max(0.0, seconds_per_step * (progress.steps - progress.step) - since_row)
    return progress


def _rows(run: Run) -> list[dict[str, float]]:
    """The rows of the run's log, without blanks; a row that is being written is left out."""
    try:
        with run.log.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, ValueError):
        return []
    rows = []
    for row in table:
        try:
            rows.append({name: float(value) for name, value in row.items() if name and value})
        except (TypeError, ValueError):
            continue
    return [row for row in rows if {"step", "tokens", "lr"} <= row.keys()]


def _steps(run: Run) -> int:
    try:
        train = run.facts()["train"]
        return 0 if train["eval_only"] else int(train["max_iters"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0


def _sample(run: Run) -> list[str]:
    """The beginning of results/samples.txt, if a model of this run wrote it."""
    for folder in (run.best, *reversed(run.checkpoints())):
        try:
            samples = read_samples(SAMPLES, read_manifest(folder)[WEIGHTS_FILE])
        except (OSError, ValueError, KeyError, UserError):
            continue
        if samples:
            lines = [line for line in samples[0].splitlines() if line.strip()]
            return ["a sample:", *(f"  {line}" for line in lines[:SAMPLE_LINES])]
    return []


def _ending(run: Run) -> str:
    """How the run ended, and where its results are."""
    if not run.finished.exists():
        newest = run.newest()
        if newest is None:
            return f"{run.folder}: ended before its first checkpoint"
        step = int(newest.name.removeprefix("step-"))
        return f"{run.folder}: stopped; step {step:,} is saved, and the same command continues there"
    metrics = run.metrics() or {}
    done = (
        f"{run.folder}: finished, step {metrics.get('steps', 0):,}, val loss {metrics.get('val_loss', 0):.4f}"
    )
    deadline = time.monotonic() + PATIENCE
    while not (published := _is_published(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return f"{done}; {f'{RESULTS}/ has the model' if published else f'{run.finished} has the log'}"


def _last_finished() -> Iterator[str]:
    finished = [run for run in _runs() if run.finished.exists()]
    if not finished:
        yield "no run is finished yet; `dvc repro` starts one"
        return
    run = max(finished, key=lambda run: _time(run.finished))
    yield from curve(_rows(run), columns(sys.stdout), writes_unicode(sys.stdout))
    yield from _sample(run)
    metrics = read_json(run.finished / "metrics.json")
    yield f"the last run, {run.folder}: val loss {metrics['val_loss']:.4f} after {metrics['steps']:,} steps"


def _is_published(run: Run) -> bool:
    try:
        return bool(read_json(RECORD)["run"] == run.folder.name)
    except (UserError, KeyError):
        return False


def _runs() -> Iterator[Run]:
    return (Run(path) for path in sorted(runs_folder().glob("*/")))


def _time(path: Path) -> float:
    """When a file was last written; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
