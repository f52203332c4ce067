"""Zero-shot evaluation: what a model can do that it was not trained for (Radford et al. 2019, section 3)."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline.config.errors import UserError
from pipeline.config.validation import suggest
from pipeline.evaluate.scoring import score
from pipeline.evaluate.tasks import HellaSwag, Lambada, Task, WikiText2
from pipeline.model.gpt import GPT
from pipeline.tokens.tokenizers import Tokenizer

TASKS: dict[str, type[Task]] = {task.name: task for task in (HellaSwag, Lambada, WikiText2)}
SECONDS_BETWEEN_LINES = 10.0


def open_task(
    name: str, tokenizer: Tokenizer, block_size: int, limit: int | None = None, data: Path | None = None
) -> Task:
    """One of TASKS in a model's tokens; several models that share them can be evaluated on it.

    `limit` keeps the first so many samples; `data` is a file to read instead of the downloaded one. Raises
    UserError for an unknown name, data that cannot be had or read, and text that the tokenizer cannot encode.
    """
    import pooch

    if name not in TASKS:
        raise UserError(f"task {name}: none of {', '.join(TASKS)}{suggest(name, list(TASKS))}")
    task = TASKS[name]
    try:
        path = data or task.download(Path(pooch.os_cache("gpt-pipeline")) / "zeroshot")
        return task(path, tokenizer, block_size, limit)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def file_name(task: str, model: str) -> str:
    """Where below results/zeroshot/ the figures go. Raises UserError for a model's name with .. or / last."""
    if ".." in Path(model).parts or model.endswith("/"):
        raise UserError(f"model {model}: name a folder without .. and without a / at its end")
    return f"{model.lstrip('/')}/{task}.json"


def evaluate_task(
    task: Task, model: GPT, tokenizer: Tokenizer, device: torch.device, batch_size: int
) -> dict[str, float]:
    """The figures that a model reaches on a task, `batch_size` sequences at a time; progress is on stderr."""
    was_training = model.training
    model.eval()
    sums, groups = np.zeros(2), 0
    with _Progress(task) as progress:
        for group, scores in score(model, task.groups, tokenizer.vocab_size, device, batch_size):
            sums, groups = sums + task.tally(group, scores), groups + 1
            progress.show(groups, task.figures(sums, groups)[task.running])
    model.train(was_training)
    return task.figures(sums, groups)


class _Progress:
    """A bar with the figure so far; off a terminal, a line now and then."""

    def __init__(self, task: Task) -> None:
        self._task = task
        terminal = sys.stderr.isatty()
        total, unit = len(task.groups), f" {task.unit}"
        self._bar = tqdm(desc=task.name, total=total, unit=unit, leave=False, disable=not terminal)
        self._next_line = math.inf if terminal else time.monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, groups: int, figure: float) -> None:
        task = self._task
        self._bar.set_postfix({task.running: f"{figure:.4g}"}, refresh=False)
        self._bar.update()
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            so_far = f"{groups:,} of {len(task.groups):,} {task.unit}"
            print(f"{task.name}: {so_far}, {task.running} {figure:.4g}", file=sys.stderr, flush=True)
