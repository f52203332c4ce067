"""The table of speed on one GPU, in nine minutes and without a network; a dry run is tiny, on a CPU.

A program that fails, or for which no time is left, is left out; all others are in the table.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.harness import (
    DATASET,
    NANOGPT,
    PREPARE,
    Figures,
    call_apart,
    copy_project,
    find_clone,
    machine,
    prepare_clone,
    put_preset,
    run_python,
    train_here,
)
from bench.loss_curves import clones_curve
from bench.measure import gpu_name, step_split, tokens_per_second_here, tokens_per_second_nanogpt
from bench.speed import Row, lines, markdown
from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.paths import RESULTS
from pipeline.corpus.documents import corpus_files
from pipeline.corpus.fetch import MIRROR
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.pydocs import documents
from pipeline.corpus.sources import load_spec, write_spec
from pipeline.storage.files import write_json, write_text

TABLE = RESULTS / "bench-gpu.md"
FIGURES = RESULTS / "bench-gpu.json"

SECONDS = 540  # in all
GPT2, FAST_GPT2, FAST_BABY = "gpt2", "fast-gpt2", "fast-shakespeare"
TARGET = 1.47  # nats per character of TinyShakespeare: nanoGPT's best
SEED = 2001
LIKE_TINY_SHAKESPEARE = 1_115_394  # characters
BABY = {"block_size": 256, "batch_size": 64, "max_iters": 5000, "eval_interval": 250}

# Runs bench.py unchanged; without a GPU there is nothing that it could wait for.
ANYWHERE = """\
import runpy, torch
if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda: None
runpy.run_path("bench.py", run_name="__main__")
"""

# Name, title, trial, program, its peer, quantity, limit, and how they are compared.
ROWS = (
    Row("step", f"124M step, {FAST_GPT2}", "step", "fast", "nanoGPT", "step", 0.75),
    Row("step-same", f"124M step, {GPT2}: nanoGPT's architecture", "step", "same", "nanoGPT", "step"),
    Row("mfu", f"MFU of {FAST_GPT2}", "step", "fast", None, "mfu", 0.45, "figure", at_least=True),
    Row("compile", f"compiling {FAST_GPT2}, nothing kept", "step", "fast", None, "first", None, "figure"),
    Row("compile-same", f"compiling {GPT2}, nothing kept", "step", "same", None, "first", None, "figure"),
    Row(
        *("sampling", "tokens/s of one text, 124M", "sampling", "here", "nanoGPT", "tokens_per_second", 8.0),
        at_least=True,
    ),
    Row("baby", f"to a val loss of {TARGET}: {FAST_BABY}", "baby", "fast", "nanoGPT", "seconds", 0.333),
    Row("baby-loss", "its val loss", "baby", "fast", "nanoGPT", "val_loss", TARGET, "worst"),
    Row("baby-eager", "the same, not compiled", "baby", "eager", "nanoGPT", "seconds"),
)
# Seconds that each program takes at most on a card of the last years: with fewer left it is not begun.
NEEDS = {"step": 80, "baby": 150, "sampling": 60}


@dataclass(frozen=True)
class Scale:
    """How much is measured. The overrides make everything small enough for a CPU, or nothing."""

    device: str
    batch_size: int  # of 1,024 tokens
    steps: int
    new_tokens: int
    model: tuple[str, ...] = ()  # overrides
    training: tuple[str, ...] = ()
    nanogpt: Mapping[str, int] | None = None  # flags that make its model as small


TINY = Scale(
    device="cpu",
    batch_size=1,
    steps=2,
    new_tokens=4,
    model=("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=16"),
    training=(
        *("train.max_iters=4", "train.lr_decay_iters=4", "train.warmup_iters=0", "train.eval_iters=1"),
        "train.batch_size=2",
    ),
    nanogpt={"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16},
)


@dataclass(frozen=True)
class Lab:
    """Copies of the programs, and how much they do."""

    ours: Path
    theirs: Path
    scale: Scale

    @property
    def here(self) -> list[str]:
        """Overrides for every program of this project."""
        on_cpu = ["runtime.compile=false"] if self.scale.device == "cpu" else []
        return [f"runtime.device={self.scale.device}", *on_cpu, *self.scale.model]


def main(
    clone: Annotated[
        Path | None, typer.Option(help="A clone of nanoGPT; by default one in the cache.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="TinyShakespeare, as input.txt; by default it is looked for in data/, the clone and "
            "PIPELINE_MIRROR. Another text is trained on too, but says nothing about 1.47.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all of it tiny, on a CPU.")] = False,
) -> None:
    """Measure training and sampling on a GPU beside nanoGPT, compiled, and print the table."""
    started = time.monotonic()
    name, memory = ("cpu, a dry run", 0) if dry_run else call_apart(gpu_name)
    scale = TINY if dry_run else Scale("cuda", 32 if memory > 60e9 else 12, steps=40, new_tokens=256)
    for preset in (GPT2, FAST_GPT2, FAST_BABY):
        presets.composed(preset)
    missing = {}
    try:
        clone = find_clone(NANOGPT, clone)
    except UserError as error:
        if clone is not None:
            raise
        missing["nanoGPT"] = str(error)
    from pipeline.runtime.compiled import CACHE_FOLDER  # loads PyTorch, which --help need not wait for

    measured: dict[str, dict[str, list[Figures]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        lab = Lab(Path(folder, "here"), Path(folder, "nanoGPT"), scale)
        _prepare(lab, clone if not missing else None, text)
        os.environ[CACHE_FOLDER] = str(Path(folder, "compiled"))  # the user's has what was compiled before
        report = ""
        for trial, program in PROGRAMS:
            if program in missing:
                continue
            left = SECONDS - (time.monotonic() - started)
            try:
                with _at_most(left if left > NEEDS[trial] else 0):
                    measured.setdefault(trial, {})[program] = [TRIALS[trial](lab, program)]
            except Exception as error:  # of a program that is measured: whatever it is, others go on
                why, *_ = (str(error).strip() or type(error).__name__).splitlines()
                missing[f"{trial}, {program}"] = why
                print(f"left out is {trial}, {program}: {why}")
            report = _write(measured, name, scale, missing, time.monotonic() - started)
    print(f"\n{report}")


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block has taken so long, or before it if that is nothing."""

    def over(*_: object) -> None:
        raise TimeoutError(f"no time is left of {SECONDS} s")

    if seconds <= 0:
        over()
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _prepare(lab: Lab, clone: Path | None, text: Path | None) -> None:
    """A copy of this project with a text of characters, tokenized, and one of the clone."""
    copy_project(lab.ours)
    put_preset(lab.ours, FAST_BABY)
    given, source = text or _tiny_shakespeare(clone), lab.ours / "input.txt"
    if given is None:
        write_text(source, "".join(text for _, text in documents())[:LIKE_TINY_SHAKESPEARE])
    else:
        shutil.copyfile(given, source)
    print(f"text: {given or 'the documentation of Python, because TinyShakespeare is not on this machine'}")
    split = load_spec(DATASET.name).split
    spec = spec_for_text(str(source)).model_copy(update={"split": split})
    write_spec(spec, lab.ours / DATASET / "dataset.yaml")
    for stage in ("download", "tokenize"):
        run_python(f"here: {stage}", lab.ours, "-m", f"stages.{stage}")
    if clone is not None:
        prepare_clone(NANOGPT.name, clone, lab.theirs, lab.ours)


def _tiny_shakespeare(clone: Path | None) -> Path | None:
    """The file, wherever it is on this machine."""
    raw, source = DATASET / "raw", load_spec(DATASET.name).source
    places = [*corpus_files(raw)] if raw.is_dir() else []
    if clone is not None:
        places.append((clone / PREPARE).with_name("input.txt"))
    if mirror := os.environ.get(MIRROR):
        places.append(Path(mirror, str(getattr(source, "url", "")).removeprefix("https://")))
    return next((path for path in places if path.is_file()), None)


def _step(lab: Lab, program: str) -> Figures:
    scale = lab.scale
    if program == "nanoGPT":
        shape = {"batch_size": scale.batch_size, "block_size": 1024 if scale.nanogpt is None else 16}
        flags = [*(f"--{name}={value}" for name, value in shape.items()), "--real_data=False"]
        flags += [f"--device={scale.device}", f"--compile={scale.device != 'cpu'}"]
        ended = run_python("nanoGPT: 124M steps", lab.theirs, "-c", ANYWHERE, *flags)
        (ms,) = re.findall(r"^time per iteration: ([\d.]+)ms", ended.output, re.MULTILINE)
        return {"step": float(ms) / 1e3}
    put_preset(lab.ours, {"fast": FAST_GPT2, "same": GPT2}[program])
    batch = [f"train.batch_size={scale.batch_size}", "train.gradient_accumulation_steps=1"]
    print(f"  {program}: 124M steps", flush=True)
    return call_apart(step_split, lab.ours, [*lab.here, *batch], scale.steps, True)


def _baby(lab: Lab, program: str) -> Figures:
    scale = lab.scale
    if program == "nanoGPT":
        tiny = (
            {**scale.nanogpt, "batch_size": 2, "max_iters": 4, "eval_interval": 2, "eval_iters": 1}
            if scale.nanogpt
            else {}
        )
        curve = clones_curve(lab.theirs, {**BABY, **tiny}, device=scale.device, compile=scale.device != "cpu")
        best = min(loss for _, loss in curve)
        seconds, loss = next(point for point in curve if point[1] <= max(TARGET, best))
        return {"seconds": seconds, "val_loss": loss}
    put_preset(lab.ours, FAST_BABY)
    eager = ["runtime.compile=false"] if program == "eager" else []
    return train_here(program, lab.ours, [*lab.here, *eager, *scale.training, f"train.seed={SEED}"])


def _sampling(lab: Lab, program: str) -> Figures:
    scale = lab.scale
    print(f"  {program}: sample", flush=True)
    if program == "nanoGPT":
        config = dict(scale.nanogpt or {})
        measured = call_apart(tokens_per_second_nanogpt, lab.theirs, scale.new_tokens, config, scale.device)
    else:
        put_preset(lab.ours, GPT2)
        measured = call_apart(tokens_per_second_here, lab.ours, lab.here, 1, scale.new_tokens)
    return {"tokens_per_second": measured}


TRIALS: dict[str, Callable[[Lab, str], Figures]] = {"step": _step, "baby": _baby, "sampling": _sampling}
# Each trial's, in the order of the rows.
PROGRAMS = tuple(
    dict.fromkeys((row.trial, name) for row in ROWS for name in (row.here, row.peer) if name is not None)
)


def _write(
    measured: Mapping[str, Mapping[str, list[Figures]]],
    device: str,
    scale: Scale,
    missing: Mapping[str, str],
    seconds: float,
) -> str:
    rows = [
        row
        for row in ROWS
        if row.here in measured.get(row.trial, {}) and (row.peer or row.here) in measured[row.trial]
    ]
    found = lines(rows, measured)
    left_out = "".join(f"\nLeft out is {name}: {why}" for name, why in missing.items())
    report = (
        f"{markdown(found)}\n\n"
        f"One run of each program, on {device}, {seconds:.0f} s in all. Steps are medians of\n"
        f"{scale.steps} steps of {scale.batch_size} x 1,024 tokens. Training is a whole process, compiling\n"
        "included, with nothing compiled before; nanoGPT's ends when a model that it saves has the loss,\n"
        "or its best."
        f"{left_out}\n"
    )
    if scale is TINY:
        return f"{report}\na dry run: nothing is written"
    write_text(TABLE, f"# On a GPU\n\n{report}")
    rows_written = [asdict(line) | {"met": line.met} for line in found]
    about = {"machine": machine() | {"gpu": device}, "missing": dict(missing), "seconds": seconds}
    write_json(FIGURES, {**about, "table": rows_written, "runs": measured})
    return f"{report}\n{TABLE}: this table\n{FIGURES}: its figures"
