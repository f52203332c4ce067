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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ParamSpec, TypeVar

from platformdirs import user_cache_path

from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE
from pipeline.config.paths import DATA, LOG, METRICS, RESULTS
from pipeline.corpus.documents import corpus_files
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text

PRESET = "shakespeare-char-cpu"
DATASET = DATA / "shakespeare"
TOKENS = DATASET / "char"

CONFIG = "config/train_shakespeare_char.py"
PREPARE = "data/shakespeare_char/prepare.py"
OUT_DIR = "out-shakespeare-char"
CHECKPOINT = "ckpt.pt"
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
# What a copy of this project is made without: what it made itself, and what only belongs to the clone.
MADE = (
    *(".git", ".venv", "runs", "results", "saved", "raw", "char", "byte", "bpe", "gpt2", "pretrained"),
    *("tmp", "cache", "config.local", "offline-plots.html", "__pycache__", ".*_cache", ".hypothesis"),
)

# Runs train.py unchanged, but with another seed.
RESEEDED = """\
import runpy, sys, torch
seed, offset = torch.manual_seed, int(sys.argv.pop(1))
torch.manual_seed = lambda number: seed(number + offset)
runpy.run_path("train.py", run_name="__main__")
"""

Figures = dict[str, float]  # seconds, step (seconds), peak (bytes), val_loss (nats per token), params

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Peer:
    """Another program, in a clone of its repository."""

    name: str
    variable: str  # of make: the folder of a clone
    url: str
    commit: str
    has: str = ""  # a word in its train.py that tells it from other clones


NANOGPT = Peer(
    "nanoGPT", "CLONE", "https://github.com/karpathy/nanoGPT", "3adf61e154c3fe3fca428ad6bc3818b27a3b8291"
)
FORK = Peer(
    *("fork", "FORK", "https://github.com/Amr-Hegazy1/nanoGPT", "b864ab921e2065304bcb4533acdb4c447f3011d1"),
    has="share_moe_experts",
)


@dataclass(frozen=True)
class Process:
    """The result of a program that has ended."""

    seconds: float
    cpu_seconds: float  # with those of the processes that it started and waited for
    peak_bytes: int  # resident memory
    output: str


@dataclass(frozen=True)
class Figure:
    """One measured figure, and the limit that it has to keep: the most it may be, or the least."""

    title: str
    value: float
    shown: str
    limit: float
    shown_limit: str
    at_least: bool = False

    @property
    def row(self) -> tuple[str, ...]:
        kept = self.value >= self.limit if self.at_least else self.value <= self.limit
        return self.title, self.shown, f"{'≥' if self.at_least else '≤'} {self.shown_limit}", VERDICTS[kept]


def write_figures(name: str, title: str, figures: Sequence[Figure]) -> None:
    """Print a table of the figures of a benchmark, and write it and them to results/bench-<name>.*."""
    table = markdown_table([("", "here", "limit", ""), *(figure.row for figure in figures)], "<>><")
    text, values = (RESULTS / f"bench-{name}.{suffix}" for suffix in ("md", "json"))
    write_text(text, f"# {title}\n\n{table}\n")
    write_json(values, {"machine": machine(), "figures": [asdict(figure) for figure in figures]})
    print(f"\n{table}\n\n{text}: this table\n{values}: the figures")


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
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Process(seconds, cpu_seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), text)


def call_apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module's function in a separate process, which may import PyTorch, and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BaseException:
            for process in multiprocessing.active_children():  # or leaving the block would wait for it
                process.kill()
            raise


def prepare_here(folder: Path, project: Path = Path()) -> None:
    """Copy a version of this project to `folder`, without what it made, and tokenize TinyShakespeare there.

    The text is that of the present folder, if it is there already.
    """
    copy_project(folder, project)
    if (DATASET / "raw").is_dir():
        shutil.copytree(DATASET / "raw", folder / DATASET / "raw")
    # By that version itself, whose parameters may be others.
    run_python(f"here: preset {PRESET}", folder, "-m", "pipeline.cli.main", "preset", PRESET, "--force")
    if not (folder / DATASET / "raw").is_dir():
        run_python("here: download", folder, "-m", "stages.download")
    run_python("here: tokenize", folder, "-m", "stages.tokenize")
    run_python("PyTorch: load once, so that no run waits for the disk", folder, "-c", "import torch")


def copy_project(folder: Path, project: Path = Path()) -> None:
    """Copy a project, this one unless said, without what is made in it, to `folder`, which may be there."""
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(*MADE), dirs_exist_ok=True)


def put_preset(folder: Path, preset: str, values: presets.Values | None = None) -> None:
    """Write the params.yaml of a copy of this project: its preset, and `values` that override it."""
    write_text(folder / PARAMS_FILE, presets.compose(preset, folder / presets.FOLDER, values))


def earlier_version(commit: str, folder: Path) -> str | None:
    """Put this project as it was at `commit` into `folder`. Returns why not, if it cannot."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=False)
    if archive.returncode:
        return f"{commit}: not in the history here; EARLIER=<commit> names another"
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return None


def find_clone(peer: Peer, given: Path | None) -> Path:
    """The folder that was given, or a clone in the user's cache, made now if need be.

    Raises UserError if that is no clone of the peer, or cannot be made.
    """
    folder = given or user_cache_path("gpt-pipeline") / f"bench/{peer.name}-{peer.commit[:7]}"
    if given is None and not folder.exists():
        _clone(peer, folder)
    repository = peer.url.removeprefix("https://")
    remedy = f"name the folder that `git clone {peer.url}` makes, at commit {peer.commit[:7]}"
    for name in ("train.py", "model.py", "sample.py", CONFIG, PREPARE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a clone of {repository}, it has no {name}; {remedy}")
    if peer.has and peer.has not in (folder / "train.py").read_text(encoding="utf-8"):
        raise UserError(f"{folder}: not a clone of {repository}, its train.py has no {peer.has}; {remedy}")
    return folder


def _clone(peer: Peer, folder: Path) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    for command in (
        ["git", "clone", "--quiet", peer.url, str(part)],
        ["git", "-C", str(part), "checkout", "--quiet", peer.commit],
    ):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            last_line = (ended.stderr.strip().splitlines() or ["git failed"])[-1]
            raise UserError(f"{peer.url}: {last_line}; name a clone of it with {peer.variable}=...")
    part.rename(folder)


def prepare_clone(name: str, clone: Path, folder: Path, here: Path) -> None:
    """Copy a clone's programs to `folder`, and prepare the text that `prepare_here` put into `here`."""
    for file in (*clone.glob("*.py"), clone / CONFIG, clone / PREPARE):
        copy = folder / file.relative_to(clone)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (text,) = corpus_files(here / DATASET / "raw")
    shutil.copy(text, (folder / PREPARE).with_name("input.txt"))
    run_python(f"{name}: prepare", folder, PREPARE)


def train_clone(
    name: str, folder: Path, settings: Mapping[str, object], seed_offset: int = 0, scored: bool = True
) -> Figures:
    """Train with a clone in nanoGPT's CPU configuration and these settings, and evaluate what it saved."""
    shutil.rmtree(folder / OUT_DIR, ignore_errors=True)
    flags = [f"--{key}={value}" for key, value in ({**FLAGS, **settings}).items()]
    ended = run_python(f"{name}: train", folder, "-c", RESEEDED, str(seed_offset), CONFIG, *ON_CPU, *flags)
    figures = {
        "seconds": ended.seconds,
        "step": median(nanogpt_steps(ended.output)),
        "peak": float(ended.peak_bytes),
    }
    return figures | (call_apart(saved_figures, folder) if scored else {})


def train_here(what: str, folder: Path, overrides: Iterable[str]) -> Figures:
    """Train in a copy of this project from the start, with its params.yaml and these overrides."""
    for leftover in (folder / "runs", folder / RESULTS):
        shutil.rmtree(leftover, ignore_errors=True)
    ended = run_python(f"{what}: train", folder, "-m", "stages.train", *(f"-S{each}" for each in overrides))
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    steps = steps_here((folder / LOG).read_text(encoding="utf-8").splitlines())
    return {
        "seconds": ended.seconds,
        "step": median(steps),
        "peak": float(ended.peak_bytes),
        "val_loss": metrics["val_loss"],
        "params": float(metrics["params"]),
    }


def nanogpt_steps(output: str) -> list[float]:
    """The seconds of each training step, from the output of nanoGPT's train.py."""
    return [float(ms) / 1e3 for ms in re.findall(r"^iter \d+: .*\btime ([\d.]+)ms", output, re.MULTILINE)]


def steps_here(log: Iterable[str]) -> list[float]:
    """The seconds of each training step, from the lines of a log.csv with a row for every step."""
    rows = [row for row in csv.DictReader(log) if row["tokens_per_second"]]
    return [int(row["tokens"]) / int(row["step"]) / float(row["tokens_per_second"]) for row in rows]


def saved_figures(folder: Path) -> Figures:
    """Parameters of the model that a clone saved on a CPU, and its loss over the whole validation split."""
    (loss,) = saved_losses(folder, [CHECKPOINT], int(FLAGS["block_size"]), int(FLAGS["batch_size"]))
    model = load_clones_model(folder, CHECKPOINT)
    return {"val_loss": loss, "params": float(sum(part.numel() for part in model.parameters()))}


def saved_losses(
    folder: Path,
    checkpoints: Sequence[str],
    block_size: int,
    batch_size: int,
    batches: int | None = None,
    device: str = "cpu",
) -> list[float]:
    """The losses of a clone's checkpoints on this project's evaluation windows, in nats per token.

    Over the first so many batches, or the whole validation split.
    """
    import numpy as np
    import torch

    from pipeline.tokens.batches import evaluation_windows
    from pipeline.tokens.shards import Tokens

    val = Tokens([np.fromfile((folder / PREPARE).with_name("val.bin"), dtype=np.uint16)])
    losses = []
    for checkpoint in checkpoints:
        model = load_clones_model(folder, checkpoint).to(device)
        nats = tokens = 0.0
        with torch.inference_mode():
            for ids, targets in evaluation_windows(val, block_size, batch_size, batches):
                _, loss, *_ = model(ids.to(device), targets.to(device))
                nats += loss.item() * targets.numel()
                tokens += targets.numel()
        losses.append(nats / tokens)
    return losses


def load_clones_model(folder: Path, checkpoint: str = CHECKPOINT) -> Any:
    """The model in a clone's checkpoint, in evaluation mode."""
    import torch

    saved: dict[str, Any] = torch.load(folder / OUT_DIR / checkpoint, map_location="cpu")
    model = build_clones_model(folder, **saved["model_args"])
    prefix = "_orig_mod."  # of a compiled model
    model.load_state_dict({name.removeprefix(prefix): value for name, value in saved["model"].items()})
    return model


def build_clones_model(folder: Path, **config: Any) -> Any:
    """A new model of a clone, in evaluation mode."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module("model")
    with contextlib.redirect_stdout(io.StringIO()):  # the model prints its size
        return module.GPT(module.GPTConfig(**config)).eval()


def machine() -> dict[str, str | int | None]:
    """The machine and the versions that the figures were measured with."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
