"""Shared parts of the benchmarks, most of them for nanoGPT and its fork on a CPU.

Both programs run as separate processes of this Python in temporary copies, so the clone and this project's
params.yaml, runs/ and results/ are not changed. The process that starts them never imports PyTorch, because
Linux counts its memory in the peak memory of the processes that it starts.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.metadata
import io
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE
from pipeline.config.paths import DATA
from pipeline.corpus.documents import corpus_files
from pipeline.storage.files import write_text

PRESET = "shakespeare-char-cpu"
DATASET = DATA / "shakespeare"
TOKENS = DATASET / "char"

CONFIG = "config/train_shakespeare_char.py"
PREPARE = "data/shakespeare_char/prepare.py"
OUT_DIR = "out-shakespeare-char"
ON_CPU = ("--device=cpu", "--compile=False")
FLAGS: dict[str, int | float] = {  # the CPU command in nanoGPT's README, without ON_CPU and max_iters
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}
VERDICTS = {None: "", True: "pass", False: "MISS"}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """The result of a program that has ended."""

    seconds: float
    peak_bytes: int  # resident memory
    output: str


def run_python(what: str, folder: Path, *arguments: str) -> Process:
    """Run Python with `arguments` in `folder`; print `what` and the seconds. Raises UserError if it fails."""
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


def call_apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module's function in a separate process, which may import PyTorch, and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def prepare_here(folder: Path) -> None:
    """Copy this project to `folder`, without runs and results, and tokenize TinyShakespeare there."""
    for name in ("pipeline", "stages", str(presets.FOLDER), str(DATASET)):
        shutil.copytree(name, folder / name)
    write_text(folder / PARAMS_FILE, presets.compose(PRESET))
    if not (folder / DATASET / "raw").is_dir():
        run_python("here: download", folder, "-m", "stages.download")
    run_python("here: tokenize", folder, "-m", "stages.tokenize")
    run_python("PyTorch: load once, so that no run waits for the disk", folder, "-c", "import torch")


def prepare_clone(name: str, clone: Path, folder: Path, here: Path) -> None:
    """Copy a clone's programs to `folder`, and prepare the text that `prepare_here` put into `here`."""
    for file in (*clone.glob("*.py"), clone / CONFIG, clone / PREPARE):
        copy = folder / file.relative_to(clone)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (text,) = corpus_files(here / DATASET / "raw")
    shutil.copy(text, (folder / PREPARE).with_name("input.txt"))
    run_python(f"{name}: prepare", folder, PREPARE)


def nanogpt_steps(output: str) -> list[float]:
    """The seconds of each training step, from the output of nanoGPT's train.py."""
    return [float(ms) / 1e3 for ms in re.findall(r"^iter \d+: .*\btime ([\d.]+)ms", output, re.MULTILINE)]


def steps_here(log: Iterable[str]) -> list[float]:
    """The seconds of each training step, from the lines of a log.csv with a row for every step."""
    rows = [row for row in csv.DictReader(log) if row["tokens_per_second"]]
    return [int(row["tokens"]) / int(row["step"]) / float(row["tokens_per_second"]) for row in rows]


def nanogpt_saved_val_loss(folder: Path) -> float:
    """The loss of nanoGPT's checkpoint on this project's evaluation windows, in nats per token."""
    return call_apart(_evaluate_checkpoint, folder)


def _evaluate_checkpoint(folder: Path) -> float:
    import numpy as np
    import torch

    from pipeline.tokens.batches import evaluation_windows
    from pipeline.tokens.shards import Tokens

    sys.path.insert(0, str(folder))
    nanogpt = importlib.import_module("model")
    checkpoint = torch.load(folder / OUT_DIR / "ckpt.pt", map_location="cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # the model prints its size
        model = nanogpt.GPT(nanogpt.GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    val = Tokens([np.fromfile((folder / PREPARE).with_name("val.bin"), dtype=np.uint16)])
    nats = tokens = 0.0
    with torch.inference_mode():
        for ids, targets in evaluation_windows(val, int(FLAGS["block_size"]), int(FLAGS["batch_size"])):
            _, loss, *_ = model(ids, targets)
            nats += loss.item() * targets.numel()
            tokens += targets.numel()
    return nats / tokens


def machine() -> dict[str, str | int | None]:
    """The machine and the versions that the figures were measured with."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
