"""Compare time, memory and loss with nanoGPT in its README's CPU configuration, on TinyShakespeare.

The two programs run in turns; see bench.harness.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from bench.harness import (
    CONFIG,
    FLAGS,
    ON_CPU,
    OUT_DIR,
    PREPARE,
    VERDICTS,
    machine,
    nanogpt_saved_val_loss,
    nanogpt_steps,
    prepare_clone,
    prepare_here,
    run_python,
    steps_here,
)
from pipeline.config.errors import UserError
from pipeline.config.paths import LOG, METRICS, RECORD, RESULTS
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text

TABLE = RESULTS / "bench-nanogpt.md"
FIGURES = RESULTS / "bench-nanogpt.json"

MAX_ITERS = 2000
EVAL_INTERVAL = 250
NUM_SAMPLES, MAX_NEW_TOKENS = 2, 300


@dataclass(frozen=True)
class Figures:
    """The figures of one run of one program."""

    train_seconds: float  # whole process
    step_seconds: float  # median over the steps; those with an evaluation are too few to affect it
    train_peak_bytes: float  # resident memory
    sample_seconds: float  # whole process
    val_loss: float  # nats per token after the last step, as the program itself measures it
    saved_val_loss: float  # nats per token of the model it saved, over the whole validation split


@dataclass(frozen=True)
class Quantity:
    """A field of Figures, how to show it, and a limit for its ratio or for this project's figure."""

    field: str
    title: str
    number: str
    scale: float = 1.0
    ratio_bar: float | None = None
    bar: float | None = None

    def show(self, value: float) -> str:
        return self.number.format(value * self.scale)


QUANTITIES = (
    Quantity("train_seconds", "training, whole process", "{:.1f} s", ratio_bar=1.0),
    Quantity("step_seconds", "a training step", "{:.2f} ms", scale=1e3, ratio_bar=1.0),
    Quantity("train_peak_bytes", "peak memory of training", "{:.0f} MB", scale=1e-6, ratio_bar=1.0),
    Quantity(
        "sample_seconds",
        f"sampling {NUM_SAMPLES} x {MAX_NEW_TOKENS} tokens, whole process",
        "{:.1f} s",
        ratio_bar=0.35,
    ),
    Quantity("val_loss", "final val loss, as the program reports it", "{:.4f}", bar=1.90),
    Quantity("saved_val_loss", "val loss of the saved model, whole split", "{:.4f}"),
)


@dataclass(frozen=True)
class Row:
    """Medians of one quantity; `met` is None if there is no limit."""

    quantity: Quantity
    nanogpt: float
    here: float
    ratio: float
    met: bool | None


def main(
    clone: Annotated[
        Path,
        typer.Argument(metavar="CLONE", help="A clone of github.com/karpathy/nanoGPT.", show_default=False),
    ],
    runs: Annotated[int, typer.Option(min=1, help="Runs of each program.")] = 3,
    max_iters: Annotated[int, typer.Option(min=10, help="Training steps in each run.")] = MAX_ITERS,
) -> None:
    """Train and sample with nanoGPT and with this project in turns, and compare the results."""
    check_clone(clone)
    with tempfile.TemporaryDirectory(prefix="bench-nanogpt-") as folder:
        theirs, ours = Path(folder, "nanoGPT"), Path(folder, "here")
        prepare_here(ours)
        prepare_clone("nanoGPT", clone, theirs, ours)
        pairs = []
        for number in range(1, runs + 1):
            print(f"run {number} of {runs}")
            pairs.append(_run_both(theirs, ours, max_iters))
    rows = summarize(pairs, full_length=max_iters == MAX_ITERS)
    report = f"{markdown(rows)}\n\n{_notes(runs, max_iters)}\n"
    write_text(TABLE, f"# Comparison with nanoGPT\n\n{report}")
    write_json(
        FIGURES,
        {
            "max_iters": max_iters,
            "machine": machine(),
            "table": [asdict(row) for row in rows],
            "runs": [{"nanogpt": asdict(nanogpt), "here": asdict(here)} for nanogpt, here in pairs],
        },
    )
    print(f"\n{report}\n{TABLE}: this table\n{FIGURES}: the figures of every run")


def check_clone(folder: Path) -> None:
    """Raise UserError if `folder` lacks a file of nanoGPT that is needed."""
    for name in ("train.py", "model.py", "sample.py", CONFIG, PREPARE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: not a clone of nanoGPT, it has no {name}; name the folder that "
                "`git clone https://github.com/karpathy/nanoGPT` makes"
            )


def nanogpt_val_loss(output: str) -> float:
    """The last validation loss in the output of nanoGPT's train.py."""
    return float(re.findall(r"^step \d+: .*\bval loss ([\d.]+)", output, re.MULTILINE)[-1])


def summarize(pairs: Sequence[tuple[Figures, Figures]], full_length: bool) -> list[Row]:
    """Medians over pairs of (nanoGPT's, this project's) figures. The ratio is the median of pairwise ratios.

    A limit for the figure itself is only checked after full-length training.
    """
    rows = []
    for quantity in QUANTITIES:
        values = [
            (getattr(nanogpt, quantity.field), getattr(here, quantity.field)) for nanogpt, here in pairs
        ]
        nanogpt, here = (median(column) for column in zip(*values, strict=True))
        ratio = median(b / a for a, b in values)
        met = None
        if quantity.ratio_bar is not None:
            met = ratio <= quantity.ratio_bar
        elif quantity.bar is not None and full_length:
            met = here <= quantity.bar
        rows.append(Row(quantity, nanogpt, here, ratio, met))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table that is readable on a terminal too."""
    cells = [("", "nanoGPT", "here", "ratio", "limit", "")]
    for row in rows:
        quantity, bar = row.quantity, ""
        if row.met is not None:
            ratio_bar = quantity.ratio_bar
            bar = f"ratio ≤ {ratio_bar:.2f}" if ratio_bar is not None else f"≤ {quantity.bar:.2f}"
        nanogpt, here = quantity.show(row.nanogpt), quantity.show(row.here)
        cells.append((quantity.title, nanogpt, here, f"{row.ratio:.3f}", bar, VERDICTS[row.met]))
    return markdown_table(cells, "<>>>><")


def _run_both(theirs: Path, ours: Path, max_iters: int) -> tuple[Figures, Figures]:
    """Train and sample with both programs, from scratch."""
    for leftover in (theirs / OUT_DIR, ours / "runs", ours / RESULTS):
        shutil.rmtree(leftover, ignore_errors=True)
    eval_interval = max_iters if max_iters % EVAL_INTERVAL else EVAL_INTERVAL  # to evaluate the last step
    length = {"max_iters": max_iters, "eval_interval": eval_interval}
    flags = [f"--{name}={value}" for name, value in (FLAGS | length).items()]
    nanogpt_train = run_python("nanoGPT: train", theirs, "train.py", CONFIG, *ON_CPU, *flags)
    overrides = [f"-Strain.{name}={value}" for name, value in length.items()]
    train = run_python("here: train", ours, "-m", "stages.train", *overrides)

    samples = {"num_samples": NUM_SAMPLES, "max_new_tokens": MAX_NEW_TOKENS}
    flags = [f"--{name}={value}" for name, value in samples.items()]
    nanogpt_sample = run_python(
        "nanoGPT: sample", theirs, "sample.py", f"--out_dir={OUT_DIR}", *ON_CPU, *flags
    )
    overrides = [f"-Ssample.{name}={value}" for name, value in samples.items()]
    sample = run_python("here: sample", ours, "-m", "stages.sample", *overrides, "--out", "-")

    metrics = json.loads((ours / METRICS).read_text(encoding="utf-8"))
    record = json.loads((ours / RECORD).read_text(encoding="utf-8"))
    nanogpt = Figures(
        train_seconds=nanogpt_train.seconds,
        step_seconds=median(nanogpt_steps(nanogpt_train.output)),
        train_peak_bytes=nanogpt_train.peak_bytes,
        sample_seconds=nanogpt_sample.seconds,
        val_loss=nanogpt_val_loss(nanogpt_train.output),
        saved_val_loss=nanogpt_saved_val_loss(theirs),
    )
    here = Figures(
        train_seconds=train.seconds,
        step_seconds=median(steps_here((ours / LOG).read_text(encoding="utf-8").splitlines())),
        train_peak_bytes=train.peak_bytes,
        sample_seconds=sample.seconds,
        val_loss=record["finished"]["last_val_loss"],
        saved_val_loss=metrics["val_loss"],
    )
    return nanogpt, here


def _notes(runs: int, max_iters: int) -> str:
    how_often = "one run" if runs == 1 else f"medians of {runs} runs"
    return (
        f"{max_iters:,} training steps, {how_often} of each program in turns; ratios are between\n"
        f"neighboring runs. nanoGPT reports the val loss on {FLAGS['eval_iters']} random batches,\n"
        "this project on the whole validation split."
    )
