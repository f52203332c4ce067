"""The measurements of `make bench WHAT=interop`: models against transformers, scoring against a plain loop.

All are on the CPU, in float32. Every weight is random, so that no parameter has a neutral value.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.config.model import GPTConfig
from pipeline.evaluate.loss import evaluate
from pipeline.evaluate.scoring import Score
from pipeline.evaluate.tasks import Task
from pipeline.evaluate.zeroshot import evaluate_task
from pipeline.model.build import build_gpt
from pipeline.model.gpt import GPT
from pipeline.model.load import load_model
from pipeline.tokens.tokenizers import Tokenizer
from pipeline.weights.gpt2 import save_gpt2, to_gpt2

CPU = torch.device("cpu")
BATCH_SIZE = 16  # zeroshot.batch_size in presets/default.yaml

LOAD_HERE = "import sys; from pipeline.model.load import load_model; load_model(sys.argv[1])"
LOAD_THERE = """\
import sys
from transformers import GPT2LMHeadModel
for parameter in GPT2LMHeadModel.from_pretrained(sys.argv[1]).parameters():
    parameter.sum()  # until a weight is used, it stays on the disk
"""


@dataclass(frozen=True)
class Pace:
    """Median tasks per second, and the figures, of the plain loop and of this project."""

    loop: float
    here: float
    ratio: float  # median over the pairs of neighboring runs
    loop_figures: dict[str, float]
    figures: dict[str, float]


def random_gpt2(config: GPTConfig) -> Any:
    """A random GPT2LMHeadModel of this shape, in evaluation mode."""
    transformers = _transformers()
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_positions=config.block_size,
        vocab_size=config.vocab_size,
        activation_function=config.activation,
        bos_token_id=None,  # GPT-2's id is outside a small vocabulary
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(shape).eval()
    _add_noise(model, config)
    return model


def save_random_gpt2(config: GPTConfig, folder: Path) -> None:
    random_gpt2(config).save_pretrained(folder)


def random_gpt(config: GPTConfig) -> GPT:
    """A random model of this shape, in evaluation mode."""
    torch.manual_seed(0)
    model = build_gpt(config).eval()
    _add_noise(model, config)
    return model


def num_params(config: GPTConfig) -> int:
    """The number of parameters of a model of this shape."""
    with torch.device("meta"):
        return build_gpt(config).num_params()


@torch.inference_mode()
def logits_difference(config: GPTConfig, folder: Path) -> float:
    """The largest difference between transformers' logits and those of the saved model, loaded here."""
    ids, theirs = _random_ids(config), random_gpt2(config)
    theirs.save_pretrained(folder)
    logits = theirs(ids).logits
    del theirs  # one model in memory at a time: the largest has 6 GB
    return _difference(logits, load_model(folder)(ids))


@torch.inference_mode()
def export_differences(config: GPTConfig, folder: Path) -> tuple[float, float]:
    """The largest differences between a model's logits and its export's, loaded here and by transformers."""
    ids, model = _random_ids(config), random_gpt(config)
    logits = model(ids)
    save_gpt2(*to_gpt2(model.state_dict(), config), folder)
    del model
    here = _difference(logits, load_model(folder)(ids))
    theirs = _transformers().GPT2LMHeadModel.from_pretrained(folder).eval()
    there = _difference(logits, theirs(ids).logits)
    return here, there


@torch.inference_mode()
def losses(theirs: Any, ours: GPT, windows: torch.Tensor, token_bytes: np.ndarray) -> tuple[float, float]:
    """Loss in nats per token, by transformers and here, in windows (N, T) that predict all but token 0."""
    reference = [theirs(window, labels=window).loss.item() for window in windows.split(1)]
    batches = [(window[:, :-1], window[:, 1:]) for window in windows.split(1)]
    return sum(reference) / len(reference), evaluate(ours, batches, token_bytes, CPU).loss


def text_ids(task: Task) -> list[int]:
    """The ids of the whole text, from a task of sliding windows."""
    new_ids = chain.from_iterable(group.continuations[0] for group in task.groups)
    return [*task.groups[0].context, *new_ids]


@torch.inference_mode()
def sliding_window_perplexity(theirs: Any, ids: Sequence[int], block_size: int, stride: int) -> float:
    """Perplexity by the recipe of transformers' documentation, "Perplexity of fixed-length models".

    A window of `block_size` tokens begins every `stride` tokens. Labels of -100 exclude from the loss the
    tokens that the window before has predicted. As in the recipe, a window's weight is its number of labels
    minus one.
    """
    text, nats, tokens, predicted = torch.tensor([list(ids)]), 0.0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + block_size, len(ids))
        window = text[:, start:end]
        labels = window.clone()
        labels[:, : predicted - end] = -100
        weight = end - predicted - 1
        nats, tokens = nats + weight * theirs(window, labels=labels).loss.item(), tokens + weight
        if end == len(ids):
            break
        predicted = end
    return float(np.exp(nats / tokens))


def measure_pace(model: GPT, task: Task, tokenizer: Tokenizer, runs: int) -> Pace:
    """Time evaluate_task and the plain loop in turns."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        loop_figures = evaluate_in_loop(model, task)
        between = time.perf_counter()
        figures = evaluate_task(task, model, tokenizer, CPU, BATCH_SIZE)
        seconds.append((between - start, time.perf_counter() - between))
    loop, here = (median(column) for column in zip(*seconds, strict=True))
    ratio = median(loop / here for loop, here in seconds)
    return Pace(task.samples / loop, task.samples / here, ratio, loop_figures, figures)


@torch.inference_mode()
def evaluate_in_loop(model: GPT, task: Task) -> dict[str, float]:
    """The result of evaluate_task, by one forward pass per continuation, together with its context."""
    sums = np.zeros(2)
    for number, (context, continuations) in enumerate(task.groups):
        scores = [_score_alone(model, [*context, *ids], len(ids)) for ids in continuations]
        sums = sums + task.tally(number, scores)
    return task.figures(sums, len(task.groups))


def _score_alone(model: GPT, ids: list[int], predicted: int) -> Score:
    """The score of the last `predicted` ids."""
    window = torch.tensor([ids[-model.block_size - 1 :]])
    logits = model(window[:, :-1])[0, -predicted:]  # (predicted, vocabulary)
    targets = window[0, -predicted:]
    log_probabilities = logits.log_softmax(-1).gather(1, targets[:, None])
    return Score(log_probabilities.sum().item(), bool((logits.argmax(-1) == targets).all()))


def _transformers() -> Any:
    """The library transformers, with its progress bars and warnings turned off."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@torch.no_grad()
def _add_noise(model: nn.Module, config: GPTConfig) -> None:
    """Add noise to every parameter, so that queries and keys are about as large as in a trained model."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=config.n_embd**-0.5)


def _random_ids(config: GPTConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (1, config.block_size), generator=generator)  # (1, T)


def _difference(some: torch.Tensor, others: torch.Tensor) -> float:
    return (some - others).abs().max().item()
