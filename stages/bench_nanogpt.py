"""Time this project beside nanoGPT: the CPU configuration of its README, on TinyShakespeare.

Both programs run by turns, as whole processes of this same Python, in temporary copies: neither the clone nor
params.yaml, runs/ and results/ here are touched by them. This process never imports PyTorch, because Linux
counts the memory of the process that starts a program into that program's peak.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from pipeline import presets
from pipeline.data.documents import corpus_files
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.params import PARAMS_FILE
from pipeline.paths import DATA, LOG, METRICS, RESULTS
from stages.command import run

PRESET = "shakespeare-char-cpu"
DATASET = DATA / "shakespeare"
TABLE = RESULTS / "bench-nanogpt.md"
FIGURES = RESULTS / "bench-nanogpt.json"

CONFIG = "config/train_shakespeare_char.py"
PREPARE = "data/shakespeare_char/prepare.py"
OUT_DIR = "out-shakespeare-char"
MAX_ITERS = 2000
EVAL_INTERVAL = 250
FLAGS: dict[str, int | float] = {  # of the README's CPU command; max_iters and the device come on top
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "lr_decay_iters": MAX_ITERS,
    "dropout": 0.0,
}
NUM_SAMPLES, MAX_NEW_TOKENS = 2, 300


@dataclass(frozen=True)
class Figures:
    """What one run of one program came to."""

    train_seconds: float  # whole process
    step_seconds: float  # median over the steps; those with an evaluation are too few to move it
    train_peak_bytes: float  # resident memory
    sample_seconds: float  # whole process
    val_loss: float  # nats per token after the last step, as the program itself measures it
    saved_val_loss: float  # nats per token of the model it saved, over the whole validation split


@dataclass(frozen=True)
class Quantity:
    """A field of Figures, how to show it, and the most that its ratio or the figure here may be."""

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
    """Medians of one quantity; `met` is None where there is no bar."""

    quantity: Quantity
    nanogpt: float
    here: float
    ratio: float
    met: bool | None


@dataclass(frozen=True)
class Process:
    """A program that has run."""

    seconds: float
    peak_bytes: int
    output: str


def main(
    clone: Annotated[
        Path, typer.Argument(help="A clone of github.com/karpathy/nanoGPT.", show_default=False)
    ],
    runs: Annotated[int, typer.Option(min=1, help="Runs of each program.")] = 3,
    max_iters: Annotated[int, typer.Option(min=10, help="Training steps in each run.")] = MAX_ITERS,
) -> None:
    """Train and sample with nanoGPT and with this project by turns, and compare."""
    check_clone(clone)
    with tempfile.TemporaryDirectory(prefix="bench-nanogpt-") as folder:
        theirs, ours = Path(folder, "nanoGPT"), Path(folder, "here")
        _prepare(clone, theirs, ours)
        pairs = []
        for number in range(1, runs + 1):
            print(f"run {number} of {runs}")
            pairs.append(_run_both(theirs, ours, max_iters))
    rows = summarize(pairs, full_length=max_iters == MAX_ITERS)
    report = f"{markdown(rows)}\n\n{_notes(runs, max_iters)}\n"
    write_text(TABLE, f"# Beside nanoGPT\n\n{report}")
    write_json(
        FIGURES,
        {
            "max_iters": max_iters,
            "machine": _machine(),
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


def nanogpt_steps(output: str) -> list[float]:
    """Seconds of each training step in what nanoGPT's train.py printed."""
    return [float(ms) / 1e3 for ms in re.findall(r"^iter \d+: .*\btime ([\d.]+)ms", output, re.MULTILINE)]


def nanogpt_val_loss(output: str) -> float:
    """The last validation loss in what nanoGPT's train.py printed."""
    return float(re.findall(r"^step \d+: .*\bval loss ([\d.]+)", output, re.MULTILINE)[-1])


def steps_here(log: Iterable[str]) -> list[float]:
    """Seconds of each training step in the lines of a log.csv that has a row for every step."""
    rows = [row for row in csv.DictReader(log) if row["tokens_per_second"]]
    return [int(row["tokens"]) / int(row["step"]) / float(row["tokens_per_second"]) for row in rows]


def summarize(pairs: Sequence[tuple[Figures, Figures]], full_length: bool) -> list[Row]:
    """Medians over pairs of (nanoGPT's, this project's) figures, the ratio's being over the pairs' ratios.

    A bar on the figure itself counts only for a training of full length.
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
    """The rows as a table that reads well on a terminal too."""
    cells = [("", "nanoGPT", "here", "ratio", "bar", "")]
    for row in rows:
        quantity, bar = row.quantity, ""
        if row.met is not None:
            ratio_bar = quantity.ratio_bar
            bar = f"ratio ≤ {ratio_bar:.2f}" if ratio_bar is not None else f"≤ {quantity.bar:.2f}"
        verdict = {None: "", True: "pass", False: "MISS"}[row.met]
        nanogpt, here = quantity.show(row.nanogpt), quantity.show(row.here)
        cells.append((quantity.title, nanogpt, here, f"{row.ratio:.3f}", bar, verdict))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    alignments = "<>>>><"
    rule = [
        "-" * width if to == "<" else "-" * (width - 1) + ":"
        for width, to in zip(widths, alignments, strict=True)
    ]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| " + " | ".join(map("{:{}{}}".format, line, alignments, widths)) + " |" for line in lines
    )


def _prepare(clone: Path, theirs: Path, ours: Path) -> None:
    """Copy both programs, without what they once produced, and let each prepare the same text."""
    _copy([*clone.glob("*.py"), clone / CONFIG, clone / PREPARE], clone, theirs)
    for name in ("pipeline", "stages", str(presets.FOLDER), str(DATASET)):
        shutil.copytree(name, ours / name)
    write_text(ours / PARAMS_FILE, presets.compose(PRESET))
    if not (ours / DATASET / "raw").is_dir():
        _run("here: download", ours, "-m", "stages.download")
    _run("here: tokenize", ours, "-m", "stages.tokenize")
    (text,) = corpus_files(ours / DATASET / "raw")
    shutil.copy(text, (theirs / PREPARE).with_name("input.txt"))
    _run("nanoGPT: prepare", theirs, PREPARE)
    _run("PyTorch: read from disk, so that the first run does not wait for it", theirs, "-c", "import torch")


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def _run_both(theirs: Path, ours: Path, max_iters: int) -> tuple[Figures, Figures]:
    """Train and sample with both programs, from nothing."""
    for leftover in (theirs / OUT_DIR, ours / "runs", ours / RESULTS):
        shutil.rmtree(leftover, ignore_errors=True)
    eval_interval = max_iters if max_iters % EVAL_INTERVAL else EVAL_INTERVAL  # both evaluate the last step
    length = {"max_iters": max_iters, "eval_interval": eval_interval}
    flags = [f"--{name}={value}" for name, value in (FLAGS | length).items()]
    on_cpu = ("--device=cpu", "--compile=False")
    nanogpt_train = _run("nanoGPT: train", theirs, "train.py", CONFIG, *on_cpu, *flags)
    overrides = [f"-Strain.{name}={value}" for name, value in length.items()]
    train = _run("here: train", ours, "-m", "stages.train", *overrides)

    samples = {"num_samples": NUM_SAMPLES, "max_new_tokens": MAX_NEW_TOKENS}
    flags = [f"--{name}={value}" for name, value in samples.items()]
    nanogpt_sample = _run("nanoGPT: sample", theirs, "sample.py", f"--out_dir={OUT_DIR}", *on_cpu, *flags)
    overrides = [f"-Ssample.{name}={value}" for name, value in samples.items()]
    sample = _run("here: sample", ours, "-m", "stages.sample", *overrides, "--out", "-")

    metrics = json.loads((ours / METRICS).read_text(encoding="utf-8"))
    nanogpt = Figures(
        train_seconds=nanogpt_train.seconds,
        step_seconds=median(nanogpt_steps(nanogpt_train.output)),
        train_peak_bytes=nanogpt_train.peak_bytes,
        sample_seconds=nanogpt_sample.seconds,
        val_loss=nanogpt_val_loss(nanogpt_train.output),
        saved_val_loss=_nanogpt_saved_val_loss(theirs),
    )
    here = Figures(
        train_seconds=train.seconds,
        step_seconds=median(steps_here((ours / LOG).read_text(encoding="utf-8").splitlines())),
        train_peak_bytes=train.peak_bytes,
        sample_seconds=sample.seconds,
        val_loss=metrics["val_loss"],
        saved_val_loss=metrics["best_val_loss"],
    )
    return nanogpt, here


def _run(what: str, folder: Path, *arguments: str) -> Process:
    """Run Python with `arguments` in `folder`, saying so. Raises UserError if it fails."""
    print(f"  {what} ... ", end="", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    print(f"{seconds:.1f} s", flush=True)
    if process.returncode:
        last_line = (text.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{what}: ended with status {process.returncode}: {last_line}")
    return Process(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), text)


def _nanogpt_saved_val_loss(folder: Path) -> float:
    """What nanoGPT's checkpoint reaches on the windows that this project evaluates on.

    A process of its own imports nanoGPT's modules, and PyTorch.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_evaluate_checkpoint, folder).result()


def _evaluate_checkpoint(folder: Path) -> float:
    import numpy as np
    import torch

    from pipeline.data.batches import evaluation_windows
    from pipeline.data.shards import Tokens

    sys.path.insert(0, str(folder))
    nanogpt = importlib.import_module("model")
    checkpoint = torch.load(folder / OUT_DIR / "ckpt.pt", map_location="cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        model = nanogpt.GPT(nanogpt.GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    val = Tokens([np.fromfile((folder / PREPARE).with_name("val.bin"), dtype=np.uint16)])
    nats = tokens = 0.0
    with torch.inference_mode():
        for ids, targets in evaluation_windows(val, int(FLAGS["block_size"]), int(FLAGS["batch_size"])):
            _, loss = model(ids, targets)
            nats += loss.item() * targets.numel()
            tokens += targets.numel()
    return nats / tokens


def _notes(runs: int, max_iters: int) -> str:
    how_often = "one run" if runs == 1 else f"medians of {runs} runs"
    return (
        f"{max_iters:,} training steps, {how_often} of each program by turns, ratios of neighbours.\n"
        f"nanoGPT reports the val loss on {FLAGS['eval_iters']} random batches, this project on the whole\n"
        "validation split."
    )


def _machine() -> dict[str, str | int | None]:
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


if __name__ == "__main__":
    run(main)
