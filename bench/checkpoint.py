"""What safety costs: saving while training goes on, resuming, and opening a large corpus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from bench.harness import Figure, call_apart, run_python, write_figures
from pipeline.config import presets
from pipeline.config.params import PARAMS_FILE, Params, load_params
from pipeline.config.paths import RESULTS
from pipeline.storage.files import write_text

EVERY, DENSE, STEPS = 100, 10, 600  # of nanoGPT's CPU configuration
# As many parameters as GPT-2, which has a larger vocabulary instead, and short steps.
GPT2_SIZED = ["model.n_layer=18", "model.n_head=12", "model.n_embd=768", "model.block_size=64"]
GPT2_SIZED_RUN = [
    *GPT2_SIZED,
    "train.batch_size=1",
    "train.eval_iters=1",
    "log.log_interval=1",
    "train.always_save_checkpoint=true",
]
SAVES = 5
CORPUS_TOKENS = 5 * 10**9  # of 16 bits
WORDS = [
    "the",
    "old",
    "ship",
    "sails",
    "over",
    "a",
    "small",
    "red",
    "sea",
    "while",
    "birds",
    "sing",
    "and",
    "sink",
    "under",
    "it",
    "again",
]


def main(pairs: Annotated[int, typer.Option(min=1, help="Runs of each kind, by turns.")] = 3) -> None:
    """Measure what checkpoints cost, how long a resume takes, and how long opening a hashed corpus does."""
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as name:
        folder = Path(name)
        _prepare(folder)
        figures = [*_cost(folder, pairs), *_stall(folder), *_resume(folder, pairs), *_corpus(folder)]
    write_figures("checkpoint", "What safety costs", figures)


def _prepare(folder: Path) -> None:
    """A copy of this project with a million characters of words as its text."""
    for name in ("pipeline", "stages", "bench", str(presets.FOLDER)):
        shutil.copytree(name, folder / name)
    write_text(folder / PARAMS_FILE, presets.compose("shakespeare-char-cpu"))
    text = folder / "words.txt"
    write_text(
        text,
        "".join(
            WORDS[number * number % 17 % len(WORDS)] + (" " if number % 9 else "\n")
            for number in range(200_000)
        ),
    )
    run_python(
        "text",
        folder,
        "-c",
        "from pathlib import Path; from pipeline.corpus.own_text import spec_for_text; "
        "from pipeline.corpus.sources import write_spec; "
        "write_spec(spec_for_text('words.txt'), Path('data/shakespeare/dataset.yaml'))",
    )
    run_python("download", folder, "-m", "stages.download")
    run_python("tokenize", folder, "-m", "stages.tokenize")


def _cost(folder: Path, pairs: int) -> Iterator[Figure]:
    """How much longer training takes with checkpoints.

    Runs differ by more than what is measured. So there is a checkpoint every DENSE steps, and the extra time
    is divided by how many times as often that is.
    """

    def seconds(interval: int) -> float:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        overrides = [
            f"train.max_iters={STEPS}",
            f"train.eval_interval={STEPS}",
            f"runtime.checkpoint_interval={interval}",
        ]
        run_python(f"checkpoints every {interval:,} steps", folder, "-m", "stages.train", *_set(overrides))
        metrics = json.loads((folder / RESULTS / "metrics.json").read_text(encoding="utf-8"))
        return float(metrics["seconds"])

    extra = (median(seconds(DENSE) / seconds(STEPS) for _ in range(pairs)) - 1) * DENSE / EVERY
    title = f"extra time of a checkpoint every {EVERY} steps, nanoGPT's CPU configuration"
    yield Figure(title, extra, f"{extra:.1%}", 0.02, "2.0%")


def _stall(folder: Path) -> Iterator[Figure]:
    seconds = call_apart(_stalls, folder)
    yield Figure(
        "a save of 127M parameters holds training up",
        median(seconds),
        f"{median(seconds):.2f} s",
        0.5,
        "0.50 s",
    )


def _resume(folder: Path, pairs: int) -> Iterator[Figure]:
    """Whole processes: one step from the start, which is saved, and one from that checkpoint."""
    for title, overrides in (
        ("nanoGPT's CPU configuration", ["train.eval_iters=1"]),
        ("127M parameters", GPT2_SIZED_RUN),
    ):
        differences = []
        for _ in range(pairs):
            shutil.rmtree(folder / "runs", ignore_errors=True)
            cold = _first_step(folder, overrides, f"{title}: start")
            resumed = _first_step(folder, overrides, f"{title}: resume")
            differences.append(resumed - cold)
        extra = median(differences)
        yield Figure(
            f"from a checkpoint to the next step, beyond a cold start, {title}",
            extra,
            f"{extra:.2f} s",
            1.5,
            "1.50 s",
        )


def _first_step(folder: Path, overrides: list[str], what: str) -> float:
    """Seconds from the start of a process to the end of its first step."""
    return float(run_python(what, folder, "-m", "bench.checkpoint", *_set(overrides)).output.split()[-1])


def _corpus(folder: Path) -> Iterator[Figure]:
    first, again = call_apart(_open_corpus, folder)
    size = CORPUS_TOKENS * 2 / 1e9
    print(f"  a corpus of {size:.0f} GB: hashed in {first:.1f} s, opened again in {again:.3f} s")
    yield Figure(
        f"opening a corpus of {size:.0f} GB that was hashed before", again, f"{again:.2f} s", 1.0, "1.00 s"
    )


def _set(overrides: list[str]) -> list[str]:
    return [f"-S{override}" for override in overrides]


def _params(overrides: list[str]) -> Params:
    return load_params(["runtime.device=cpu", *overrides])


def _stalls(folder: Path) -> list[float]:
    """How long each of a few saves holds training up, but for the first, which allocates the snapshot."""
    from pipeline.train.fit import fit
    from pipeline.train.loop import Interrupted, Trainer

    os.chdir(folder)
    seconds: list[float] = []
    save = Trainer._save

    def timed(trainer: Trainer, **what: Any) -> None:
        trainer._background.wait()  # with steps as short as these, the save before may still be running
        start = time.perf_counter()
        save(trainer, **what)
        if what["checkpoint"]:
            seconds.append(time.perf_counter() - start)
        if len(seconds) == SAVES + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer._save = timed  # type: ignore[method-assign, assignment]
    params = _params([*GPT2_SIZED_RUN, "runtime.checkpoint_interval=4"])
    with suppress(Interrupted):
        fit(params, Path("data/shakespeare/char"), Path("runs-stall"), say=print)
    shutil.rmtree("runs-stall")
    return seconds[1 : SAVES + 1]


def _open_corpus(folder: Path) -> tuple[float, float]:
    """Seconds to open a corpus for the first time and again. Its file has no blocks on the disk."""
    from pipeline.storage.checksums import sha256_file
    from pipeline.tokens.shards import Manifest, load_manifest, open_split

    os.chdir(folder)
    tokens = Path("data/shakespeare/char")
    manifest = load_manifest(tokens)
    path = tokens / "train-00000.bin"
    with path.open("wb") as file:
        file.truncate(CORPUS_TOKENS * 2)
    shard = manifest.train.shards[0].model_copy(
        update={"tokens": CORPUS_TOKENS, "bytes": CORPUS_TOKENS * 2, "sha256": sha256_file(path)}
    )
    train = manifest.train.model_copy(update={"tokens": CORPUS_TOKENS, "shards": [shard]})
    Manifest.model_validate(manifest.model_copy(update={"train": train}).model_dump()).save(tokens)

    def seconds() -> float:
        start = time.perf_counter()
        open_split(tokens, "train")
        return time.perf_counter() - start

    return seconds(), seconds()


def first_step(overrides: Annotated[list[str] | None, typer.Option("-S")] = None) -> None:
    """Train as `stages.train` does for one step, and print the seconds since the process began."""
    started = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + _process_start()
    from pipeline.config.paths import runs_folder, tokens_folder
    from pipeline.train.fit import fit
    from pipeline.train.loop import Interrupted, Trainer

    step = Trainer._step
    seconds: list[float] = []

    def timed(trainer: Trainer) -> None:
        step(trainer)
        seconds.append(time.time() - started)
        os.kill(os.getpid(), signal.SIGTERM)  # it saves the step and ends

    Trainer._step = timed  # type: ignore[method-assign, assignment]
    params = _params(overrides or [])
    with suppress(Interrupted):
        fit(params, tokens_folder(params), runs_folder(), say=lambda _: None)
    print(seconds[0])


def _process_start() -> float:
    """When this process began, on the monotonic clock. From /proc: Linux only."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    typer.run(first_step)
