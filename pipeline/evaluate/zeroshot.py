"""Zero-shot evaluation: tasks that a model was not trained for (Radford et al. 2019, section 3)."""

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
from pipeline.distributed.sharded import is_divided
from pipeline.distributed.world import world
from pipeline.evaluate.scoring import score
from pipeline.evaluate.tasks import HellaSwag, Lambada, Task, WikiText2
from pipeline.model.gpt import GPT
from pipeline.tokens.tokenizers import Tokenizer

TASKS: dict[str, type[Task]] = {task.name: task for task in (HellaSwag, Lambada, WikiText2)}
SECONDS_BETWEEN_LINES = 10.0


def open_task(
    name: str, tokenizer: Tokenizer, block_size: int, limit: int | None = None, data: Path | None = None
) -> Task:
    """Open one of TASKS, tokenized for a model; models with the same tokenizer and block size can share it.

    `limit` is the number of samples to keep, from the start; `data` is a file to read instead of the
    downloaded one. Raises UserError for an unknown name, for data that cannot be downloaded or read, and for
    text that the tokenizer cannot encode.
    """
    from platformdirs import user_cache_path

    if name not in TASKS:
        raise UserError(f"task {name}: not one of {', '.join(TASKS)}{suggest(name, list(TASKS))}")
    task = TASKS[name]
    try:
        path = data or task.download(user_cache_path("gpt-pipeline") / "zeroshot")
        return task(path, tokenizer, block_size, limit)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def file_name(task: str, model: str) -> str:
    """The path of a result below results/zeroshot/. Raises UserError if `model` contains .. or ends in /."""
    if ".." in Path(model).parts or model.endswith("/"):
        raise UserError(f"model {model}: name a folder without .. and without a / at its end")
    return f"{model.lstrip('/')}/{task}.json"


def evaluate_task(
    task: Task, model: GPT, tokenizer: Tokenizer, device: torch.device, batch_size: int
) -> dict[str, float]:
    """Measure a model's figures on a task, `batch_size` sequences at a time. Shows progress on stderr."""
    was_training = model.training
    model.eval()
    sums, groups = np.zeros(2), 0
    # Ranks that have pieces of the model go through it together.
    ranks, every = world(), range(len(task.groups))
    divided = is_divided(model)
    own = every if divided else every[ranks.rank :: ranks.size]
    with _Progress(task, len(own)) as progress:
        some = [task.groups[number] for number in own]
        for index, scores in score(model, some, tokenizer.vocab_size, device, batch_size):
            sums, groups = sums + task.tally(own[index], scores), groups + 1
            progress.show(groups, task.figures(sums, groups)[task.running])
    model.train(was_training)
    if not divided:
        *totals, groups = ranks.sum(torch.tensor([*sums, groups], dtype=torch.float64)).tolist()
        sums = np.array(totals)
    return task.figures(sums, round(groups))


class _Progress:
    """Shows the running figure: a bar on a terminal, elsewhere a line every SECONDS_BETWEEN_LINES."""

    def __init__(self, task: Task, total: int) -> None:
        self._task = task
        self._total = total  # of one rank
        self._silent = not world().is_main
        terminal, unit = sys.stderr.isatty() and not self._silent, f" {task.unit}"
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
        if time.monotonic() >= self._next_line and not self._silent:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            so_far = f"{groups:,} of {self._total:,} {task.unit}"
            print(f"{task.name}: {so_far}, {task.running} {figure:.4g}", file=sys.stderr, flush=True)
