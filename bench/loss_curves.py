"""Validation loss against the time since a program was started, as figures and as a picture."""

from __future__ import annotations

import csv
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.harness import (
    CHECKPOINT,
    CONFIG,
    FLAGS,
    OUT_DIR,
    call_apart,
    put_preset,
    run_python,
    saved_losses,
)
from pipeline.config.params import load_params
from pipeline.config.paths import LOG, RUN_FILE
from pipeline.report.labels import COLORS, Label, plain, put_labels
from pipeline.report.png import save_picture

TOKENS = 15_360  # of the validation split, from its start; nanoGPT's 20 batches of 12 windows
POINTS = 12  # of a curve of this project

# Runs train.py unchanged, but keeps each checkpoint, and prints when it was written.
KEPT = """\
import runpy, sys, time, torch
save, started = torch.save, float(sys.argv.pop(1))
def keep(saved, path):
    save(saved, f"{path}.{saved['iter_num']}")
    print(f"kept {saved['iter_num']} after {time.time() - started}")
torch.save = keep
runpy.run_path("train.py", run_name="__main__")
"""

Curve = list[tuple[float, float]]  # seconds since the program was started, nats per token


def loss_curves(
    ours: Path, theirs: Path, presets: Mapping[str, tuple[str, Sequence[str]]]
) -> dict[str, Curve]:
    """The curves of nanoGPT's CPU run, and of presets here with overrides. The scorer is the same.

    Before training there is no point. Evaluations here are a part of the time, as they are in training.
    """
    batches = TOKENS // int(FLAGS["block_size"] * FLAGS["batch_size"])
    settings = {**FLAGS, "max_iters": 2000, "eval_interval": 250, "always_save_checkpoint": True}
    curves = {"nanoGPT": clones_curve(theirs, settings, batches)}
    for name, (preset, overrides) in presets.items():
        put_preset(ours, preset)
        curves[name] = _here(name, ours, overrides)
    return curves


def draw_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draw the curves, with the name and the last value of each beside it."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    labels = []
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        seconds, losses = zip(*curve, strict=True)
        axes.plot(seconds, losses, marker="o", markersize=3, color=color)
        labels.append(Label(seconds[-1], losses[-1], f"{name}: {losses[-1]:.3f}", color, bold=True))
    lowest = min(loss for curve in curves.values() for _, loss in curve)
    axes.set_ylim(
        lowest - 0.05, min(lowest + 1.2, max(loss for c in curves.values() for _, loss in c) + 0.05)
    )
    axes.set_xlim(0, 1.1 * max(seconds for curve in curves.values() for seconds, _ in curve))
    axes.set_xlabel("seconds since the program was started")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title(f"TinyShakespeare by characters, on a CPU\nloss of the first {TOKENS:,} validation tokens")
    plain(axes)
    put_labels(axes, labels)
    save_picture(figure, path)


def clones_curve(
    folder: Path,
    settings: Mapping[str, object],
    batches: int | None = None,
    device: str = "cpu",
    compile: bool = False,
) -> Curve:
    """Train with a clone; the loss of every model that it saved, by this project's scorer.

    Over so many batches, or the whole validation split. The settings have to name block_size and batch_size,
    which the scorer takes too.
    """
    shutil.rmtree(folder / OUT_DIR, ignore_errors=True)
    flags = [f"--{name}={value}" for name, value in settings.items()]
    arguments = (str(time.time()), CONFIG, f"--device={device}", f"--compile={compile}", *flags)
    ended = run_python("nanoGPT: train, keeping its models", folder, "-c", KEPT, *arguments)
    kept = re.findall(r"^kept (\d+) after ([\d.]+)$", ended.output, re.MULTILINE)
    shape = (int(str(settings["block_size"])), int(str(settings["batch_size"])))
    names = [f"{CHECKPOINT}.{step}" for step, _ in kept]
    losses = call_apart(saved_losses, folder, names, *shape, batches, device)
    return [(float(seconds), loss) for (_, seconds), loss in zip(kept, losses, strict=True)]


def _here(name: str, folder: Path, overrides: Sequence[str]) -> Curve:
    for leftover in (folder / "runs", folder / "results"):
        shutil.rmtree(leftover, ignore_errors=True)
    params = load_params(overrides, folder / "params.yaml")
    batches = -(-TOKENS // (params.train.batch_size * params.model.block_size))
    often = [
        f"train.eval_interval={max(1, params.train.max_iters // POINTS)}",
        f"train.eval_iters={batches}",
    ]
    started = time.time()
    changes = (f"-S{change}" for change in (*overrides, *often))
    run_python(f"{name}: train for the picture", folder, "-m", "stages.train", *changes)
    (begun,) = (folder / "runs").glob(f"*/{RUN_FILE}")
    until_begun = begun.stat().st_mtime - started
    with (folder / LOG).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val_loss"] and int(row["step"])]
    return [(until_begun + float(row["seconds"]), float(row["val_loss"])) for row in rows]
