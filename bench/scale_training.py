"""Training on several processes of this machine: whether its losses are those of one, and survive a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Figure, copy_project, put_preset, run_python
from pipeline.config.errors import UserError
from pipeline.config.paths import RECORD, RESULTS
from pipeline.config.reading import read_json

TRAIN = ("-m", "stages.train")
RANKS, MODES = (2, 4), ("ddp", "fsdp")
SHAPES = ((16, 1), (4, 4))  # sequences in a micro-batch, micro-batches: with 1, ranks share its sequences
STEPS = 20
KILLS = 10
RUNS = "runs"


def figures(folder: Path, runs: int) -> Iterator[Figure]:
    """Losses after 20 steps, of the default model in float32, and how often a killed rank was made good."""
    copy_project(folder)
    for stage in ("download", "tokenize"):
        _put(folder, 16, 1)
        run_python(stage, folder, "-m", f"stages.{stage}")
    for batch_size, micro_batches in SHAPES:
        _put(folder, batch_size, micro_batches)
        alone = _losses(folder, 1, "auto")
        for mode in MODES:
            for ranks in RANKS:
                found = _losses(folder, ranks, mode)
                worst = max(abs(one - other) for one, other in zip(alone, found, strict=True))
                title = f"{ranks} processes ({mode}), {micro_batches} x {batch_size} sequences"
                yield Figure(f"losses of {STEPS} steps: {title}", worst, f"{worst:.1e}", 1e-5, "1e-5")
    _put(folder, 16, 1)
    expected = _losses(folder, 2, "ddp")
    good = sum(_survives(folder, number, expected) for number in range(KILLS))
    title = f"trainings that end as they would after `kill -9` of a process, of {KILLS}"
    yield Figure(title, good, str(good), KILLS, str(KILLS), at_least=True)


def _put(folder: Path, batch_size: int, micro_batches: int) -> None:
    train = {
        "batch_size": batch_size,
        "gradient_accumulation_steps": micro_batches,
        "max_iters": STEPS,
        "lr_decay_iters": STEPS,
        "dtype": "float32",
        "eval_interval": STEPS,
        "eval_iters": 2,
        "always_save_checkpoint": True,
    }
    runtime = {"device": "cpu", "checkpoint_interval": 5}
    put_preset(folder, "default", {"train": train, "runtime": runtime, "log": {"log_interval": 1}})


def _losses(folder: Path, ranks: int, mode: str) -> list[float]:
    """What training on so many processes ends with."""
    for made in (RUNS, RESULTS):
        shutil.rmtree(folder / made, ignore_errors=True)
    with _processes(ranks):
        run_python(f"{ranks} processes, {mode}", folder, *TRAIN, f"-Sruntime.parallel={mode}")
    return _found(folder)


def _found(folder: Path) -> list[float]:
    """The losses of the model after the last step, on all of the validation split and as much of training."""
    found = read_json(folder / RECORD)["finished"]
    return [found["last_val_loss"], found["train_loss"]]


def _survives(folder: Path, number: int, expected: list[float]) -> bool:
    """Kill one of two processes after a checkpoint; whether the losses come out as they would."""
    for made in (RUNS, RESULTS):
        shutil.rmtree(folder / made, ignore_errors=True)
    with _processes(2), (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *TRAIN], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while not list((folder / RUNS).glob("*/step-?????????")):
                if process.poll() is not None:
                    raise UserError(f"training ended with status {process.returncode} before it was hurt")
                time.sleep(0.02)
            ranks = _children(process.pid)
            os.kill(ranks[number % len(ranks)], signal.SIGKILL)
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    good = status == 0 and _found(folder) == expected
    outcome = "the same losses" if good else f"other losses, or status {status}"
    print(f"  process {number % 2} of 2 killed: {outcome}", flush=True)
    return good


def _children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in listed.split()]


@contextmanager
def _processes(ranks: int) -> Iterator[None]:
    """Within the block, commands run on so many processes."""
    os.environ["NPROC"] = str(ranks)
    try:
        yield
    finally:
        del os.environ["NPROC"]
