"""Compare logits, losses and memory with transformers, and zero-shot tasks with a plain loop.

bench.parity has the measurements.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from bench.harness import VERDICTS, call_apart, machine, run_python
from bench.parity import (
    BATCH_SIZE,
    CPU,
    LOAD_HERE,
    LOAD_THERE,
    export_differences,
    logits_difference,
    losses,
    measure_pace,
    num_params,
    random_gpt,
    random_gpt2,
    save_random_gpt2,
    sliding_window_perplexity,
    text_ids,
)
from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import GPTConfig
from pipeline.config.paths import RESULTS
from pipeline.evaluate.tasks import Task
from pipeline.evaluate.zeroshot import evaluate_task, open_task
from pipeline.model.gpt import GPT
from pipeline.model.load import load_model
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text
from pipeline.tokens.tokenizers import Tokenizer, gpt2_tokenizer

TABLE = RESULTS / "bench-interop.md"
FIGURES = RESULTS / "bench-interop.json"

NARROWER, SHORTER = 16, 4  # divide GPT-2's width and context for comparing logits without --full
WINDOWS = 8  # of the text, to compute the loss on
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64}  # evaluates all of WikiText-2 in minutes
STRIDE = 512  # of WikiText-2's windows
RUNS = 3  # of HellaSwag, for each implementation

LOGITS_BARS = {"gelu_new": 1e-4, "gelu": 1e-5}
EXPORT_BARS = {"here": 0.0, "by transformers": 1e-5}
LOSS_BAR = 1e-4
PERPLEXITY_BAR = 5e-4  # relative: three digits are the same
MEMORY_BAR = 1.2
PACE_BAR = 2.0


@dataclass(frozen=True)
class Row:
    """A measured figure, its limit (upper, or lower if `at_least`), and the two values that it compares."""

    title: str
    measured: float
    bar: float
    at_least: bool = False
    reference: float | None = None
    here: float | None = None
    number: str = "{:.6g}"  # the format of `reference` and `here`

    @property
    def met(self) -> bool:
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar


def main(
    hellaswag: Annotated[
        Path | None,
        typer.Option(help="HellaSwag's validation split; downloaded by default.", show_default=False),
    ] = None,
    wikitext: Annotated[
        Path | None,
        typer.Option(help="WikiText-2's wiki.test.raw; downloaded by default.", show_default=False),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Number of HellaSwag tasks, from the start.")] = 100,
    full: Annotated[
        bool,
        typer.Option("--full", help="Compare logits at GPT-2's full sizes, up to 6.2 GB each."),
    ] = False,
    skip_memory: Annotated[
        bool, typer.Option("--skip-memory", help="Skip the peak memory of loading GPT-2 XL, 6.2 GB.")
    ] = False,
) -> None:
    """Compare this project with transformers, and with a plain loop over HellaSwag, on the CPU."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("transformers is not installed; install it with `make install`")
    shapes = {name: published.config for name, published in PUBLISHED.items()}
    gpt2, largest = shapes["gpt2"], shapes["gpt2-xl"]
    if full or not skip_memory:
        check_space(Path(tempfile.gettempdir()), 4 * num_params(largest))
    tokenizer = gpt2_tokenizer()
    questions = open_task("hellaswag", tokenizer, gpt2.block_size, tasks, hellaswag)
    text = open_task("wikitext2", tokenizer, gpt2.block_size, data=wikitext)
    windows = first_windows(text_ids(text), gpt2.block_size)

    # First, while this process is small: on Linux, a child's peak memory is at least its parent's size.
    memory = [] if skip_memory else [memory_row(largest)]
    rows = [
        *logits_rows(shapes if full else {name: reduced(config) for name, config in shapes.items()}),
        loss_row(gpt2, windows, tokenizer.token_bytes),
        perplexity_row(gpt2.model_copy(update=SMALL), text, tokenizer),
        *memory,
        *hellaswag_rows(gpt2, questions, tokenizer),
    ]
    report = f"{markdown(rows)}\n\n{_notes(full, tasks=questions.samples, tokens=windows.numel())}\n"
    write_text(TABLE, f"# Comparison with transformers\n\n{report}")
    versions = {"transformers": importlib.metadata.version("transformers")}
    table = [asdict(row) | {"met": row.met} for row in rows]
    write_json(FIGURES, {"full": full, "machine": machine() | versions, "table": table})
    print(f"\n{report}\n{TABLE}: this table\n{FIGURES}: its figures")


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if a file of `needed` bytes does not fit into `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB are free, and a model needs {needed / 1e9:.1f}; set TMPDIR to a "
            "folder on a larger disk, or use --skip-memory without --full"
        )


def first_windows(ids: Sequence[int], block_size: int) -> torch.Tensor:
    """The first WINDOWS windows of a text, or as many as it has, (N, T). Raises UserError if it has none."""
    number = min(WINDOWS, len(ids) // block_size)
    if not number:
        raise UserError(
            f"--wikitext: its {len(ids)} tokens are less than a window of {block_size}; name wiki.test.raw"
        )
    return torch.tensor(ids[: number * block_size]).view(number, block_size)


def reduced(config: GPTConfig) -> GPTConfig:
    """The same config, but narrower and with a shorter context."""
    changes = {"n_embd": config.n_embd // NARROWER, "block_size": config.block_size // SHORTER}
    return config.model_copy(update=changes)


def logits_rows(shapes: Mapping[str, GPTConfig]) -> Iterator[Row]:
    """Compare the logits of models that transformers saved, then of models exported here, for each shape."""
    for name, shape in shapes.items():
        for activation, bar in LOGITS_BARS.items():
            title = f"logits of {name}, {activation}: difference"
            print(f"  {title}", flush=True)
            with _temporary() as folder:
                config = shape.model_copy(update={"activation": activation})
                yield Row(title, logits_difference(config, folder), bar)
    for name, shape in shapes.items():
        print(f"  logits of {name}, exported: difference", flush=True)
        with _temporary() as folder:
            differences = export_differences(shape.model_copy(update={"activation": "gelu"}), folder)
        for (reader, bar), difference in zip(EXPORT_BARS.items(), differences, strict=True):
            yield Row(f"logits of {name}, exported and read {reader}: difference", difference, bar)


def loss_row(config: GPTConfig, windows: torch.Tensor, token_bytes: np.ndarray) -> Row:
    """Compare the loss on windows (N, T) of a text."""
    print(f"  loss on {windows.numel():,} tokens", flush=True)
    theirs, ours = _both(config)
    reference, here = losses(theirs, ours, windows, token_bytes)
    title = "loss on a text, nats per token: difference"
    return Row(title, abs(here - reference), LOSS_BAR, reference=reference, here=here)


def perplexity_row(config: GPTConfig, text: Task, tokenizer: Tokenizer) -> Row:
    """Compare the perplexity of a text in sliding windows."""
    theirs, ours = _both(config)
    print("  perplexity of WikiText-2: here", flush=True)
    here = evaluate_task(text, ours, tokenizer, CPU, BATCH_SIZE)["perplexity"]
    print("  perplexity of WikiText-2: by the recipe of transformers' documentation", flush=True)
    stride = min(STRIDE, config.block_size // 2)
    reference = sliding_window_perplexity(theirs, text_ids(text), config.block_size, stride)
    title = "perplexity of WikiText-2: relative difference"
    return Row(title, abs(here / reference - 1), PERPLEXITY_BAR, reference=reference, here=here)


def memory_row(config: GPTConfig) -> Row:
    """Peak memory of a process that opens and loads a model, over the model's size."""
    size = 4 * num_params(config)
    with _temporary() as folder:
        call_apart(save_random_gpt2, config, folder)
        peaks = [
            run_python(
                f"loading {size / 1e9:.1f} GB, {reader}", Path.cwd(), "-c", program, str(folder)
            ).peak_bytes
            for reader, program in (("by transformers", LOAD_THERE), ("here", LOAD_HERE))
        ]
    reference, here = (peak / 1e9 for peak in peaks)
    title = f"peak memory of loading {size / 1e9:.2f} GB: times that size"
    return Row(title, peaks[1] / size, MEMORY_BAR, reference=reference, here=here, number="{:.2f} GB")


def hellaswag_rows(config: GPTConfig, task: Task, tokenizer: Tokenizer) -> list[Row]:
    """Compare the tasks per second, and the figures, of both implementations."""
    print(f"  HellaSwag, {task.samples} tasks, {RUNS} times each way", flush=True)
    pace = measure_pace(random_gpt(config), task, tokenizer, RUNS)
    rows = [
        Row(
            "HellaSwag, tasks a second: ratio",
            pace.ratio,
            PACE_BAR,
            at_least=True,
            reference=pace.loop,
            here=pace.here,
            number="{:.2f}",
        )
    ]
    for name, reference in pace.loop_figures.items():
        here = pace.figures[name]
        title = f"HellaSwag, {name}: difference"
        rows.append(Row(title, abs(here - reference), 0.0, reference=reference, here=here, number="{:.4f}"))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table that is readable on a terminal too."""
    cells = [("", "reference", "here", "measured", "limit", "")]
    for row in rows:
        reference, here = (
            "" if value is None else row.number.format(value) for value in (row.reference, row.here)
        )
        bar = f"{'≥' if row.at_least else '≤'} {row.bar:g}"
        cells.append((row.title, reference, here, f"{row.measured:.3g}", bar, VERDICTS[row.met]))
    return markdown_table(cells, "<>>>><")


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-interop-") as folder:
        yield Path(folder)


def _both(config: GPTConfig) -> tuple[Any, GPT]:
    """One random model, in transformers and loaded here."""
    theirs = random_gpt2(config)
    with _temporary() as folder:
        theirs.save_pretrained(folder)
        return theirs, load_model(folder)


def _notes(full: bool, tasks: int, tokens: int) -> str:
    size = "full size" if full else f"{NARROWER} times narrower and with {SHORTER} times fewer positions"
    return (
        "Random weights, float32, on the CPU. The reference is transformers; for HellaSwag it is the same\n"
        "model in a loop that reads each ending with its context, alone.\n"
        f"Logits: GPT-2's shapes, {size}.\n"
        f"Loss: GPT-2 (124M) on {tokens:,} tokens of WikiText-2. Perplexity: {SMALL['n_layer']} layers.\n"
        f"HellaSwag: GPT-2 (124M), {tasks} tasks, medians of {RUNS} runs in turns; ratios are between\n"
        "neighboring runs."
    )
