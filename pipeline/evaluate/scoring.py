"""Log-likelihoods of continuations and of long texts, which zero-shot tasks are scored with.

Log-likelihoods are in nats. A context that several continuations share is computed once, and only positions
that predict a scored token go through the projection to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pipeline.config.errors import UserError
from pipeline.distributed.sharded import without_gradients
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.tokens.tokenizers import Tokenizer

POSITIONS_PER_PROJECTION = 256  # bounds the logits in memory: 50 MB with GPT-2's vocabulary
MAX_PADDING = 0.2  # share of the longest sequence in a batch


class Group(NamedTuple):
    """A context and its continuations, as token ids. None of them is empty."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


class Score(NamedTuple):
    """A model's score of one continuation."""

    log_probability: float  # nats, summed over its tokens
    greedy: bool  # whether each token is the most likely one at its position


def score(
    model: GPT, groups: Sequence[Group], vocab_size: int, device: torch.device, batch_size: int
) -> Iterator[tuple[int, list[Score]]]:
    """Yield (index of a group, a Score for each of its continuations), in the order fastest to compute.

    `batch_size` sequences are computed together. If a sequence does not fit `block_size`, its context loses
    its beginning, as in lm-evaluation-harness; a continuation longer than `block_size` is scored in adjacent
    windows. Ids from `vocab_size` on are padding and get no probability.
    """
    assert not model.training, "dropout would make the scores random"
    shared = [_shared_positions(group, model.block_size) for group in groups]
    similar = sorted(range(len(groups)), key=lambda i: (shared[i], _longest(groups[i])), reverse=True)
    for first in range(0, len(groups), batch_size):
        batch = similar[first : first + batch_size]
        past = min(shared[index] for index in batch)
        together = [groups[index] for index in batch]
        with without_gradients(model):
            scores = _score_batch(model, together, past, vocab_size, device, batch_size)
        yield from zip(batch, scores, strict=True)


def sliding_windows(ids: Sequence[int], block_size: int, stride: int) -> list[Group]:
    """Cut a long text into windows of `block_size` tokens, one every `stride` < `block_size` tokens.

    Each window predicts the tokens after the end of the window before: every token but the text's first is
    predicted once, from at least `block_size - stride` tokens except near the start. This is the recipe in
    the documentation of transformers, "Perplexity of fixed-length models".
    """
    assert 0 < stride < block_size
    groups, predicted = [], 1
    for start in range(0, len(ids), stride):
        end = min(start + block_size, len(ids))
        if end > predicted:
            groups.append(Group(ids[start:predicted], [ids[predicted:end]]))
        if end == len(ids):
            break
        predicted = end
    return groups


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context and of its continuation, separated as in lm-evaluation-harness.

    Spaces at the end of the context go to the continuation. The two are tokenized as one text; as many ids as
    the context alone has are the context, the others the continuation. An empty context becomes the
    end-of-text token. Raises UserError if the tokenizer has no such token or cannot encode the text.
    """
    assert continuation, "there is nothing to predict"
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation).tolist()
    if not stripped:
        return [end_of_text(tokenizer)], whole
    length = min(len(tokenizer.encode(stripped)), len(whole) - 1)  # leave a token to predict
    return whole[:length], whole[length:]


def end_of_text(tokenizer: Tokenizer) -> int:
    """The end-of-text id, used as an empty context. Raises UserError if the tokenizer has none."""
    if tokenizer.end_of_text is None:
        raise UserError(
            "an empty context needs an end-of-text token, which the model's tokenizer lacks; "
            "use a model with such a tokenizer"
        )
    return tokenizer.end_of_text


class _Window(NamedTuple):
    """At most block_size + 1 ids; the last `predicted` are (part of) a continuation of group `row`."""

    row: int
    continuation: int
    ids: list[int]
    predicted: int


def _windows(group: Group, row: int, block_size: int) -> Iterator[_Window]:
    """Yield one window per continuation, or several, the last first, if it is longer than block_size."""
    first = len(group.context)
    for number, continuation in enumerate(group.continuations):
        ids = [*group.context, *continuation]
        while len(ids) > first:
            start = max(0, len(ids) - block_size - 1)
            predicted = len(ids) - max(first, start + 1)
            yield _Window(row, number, ids[start:], predicted)
            ids = ids[:-predicted]


def _longest(group: Group) -> int:
    """The number of tokens of the context and its longest continuation together."""
    return len(group.context) + max(map(len, group.continuations))


def _shared_positions(group: Group, block_size: int) -> int:
    """The number of context ids to compute once for all continuations; the last id already predicts."""
    return len(group.context) - 1 if _longest(group) <= block_size + 1 else 0


def _score_batch(
    model: GPT, groups: list[Group], past: int, vocab_size: int, device: torch.device, batch_size: int
) -> list[list[Score]]:
    """Score groups; the first `past` ids of each context are computed once for all its continuations."""
    windows = [
        window for row, group in enumerate(groups) for window in _windows(group, row, model.block_size)
    ]
    cache = None
    if len(windows) == len(groups):
        past = 0  # nothing is shared: one pass is faster than two
    if past:
        cache = KVCache(max(len(window.ids) for window in windows) - 1, len(groups))
        beginnings = torch.tensor([list(group.context[:past]) for group in groups], device=device)
        model.hidden_states(beginnings, cache)  # (B, past)
    scores = [[Score(0.0, True)] * len(group.continuations) for group in groups]
    for batch in _batches_by_length(windows, past, batch_size):
        rows = torch.tensor([window.row for window in batch], device=device)
        own = None if cache is None else cache.select(rows)
        new_scores = _score_windows(model, batch, past, own, vocab_size, device)
        for window, new in zip(batch, new_scores, strict=True):
            so_far = scores[window.row][window.continuation]
            total = so_far.log_probability + new.log_probability
            scores[window.row][window.continuation] = Score(total, so_far.greedy and new.greedy)
    return scores


def _batches_by_length(windows: list[_Window], past: int, batch_size: int) -> Iterator[list[_Window]]:
    """Batches of at most `batch_size` windows, the longest first, with at most MAX_PADDING of padding."""
    batch: list[_Window] = []
    shortest = 0.0
    for window in sorted(windows, key=lambda window: len(window.ids), reverse=True):
        length = len(window.ids) - past
        if batch and (len(batch) == batch_size or length < shortest):
            yield batch
            batch = []
        if not batch:
            shortest = (1 - MAX_PADDING) * length
        batch.append(window)
    yield batch


def _score_windows(
    model: GPT,
    windows: Sequence[_Window],
    past: int,
    cache: KVCache | None,
    vocab_size: int,
    device: torch.device,
) -> list[Score]:
    """Score windows whose first `past` ids are in the KV cache."""
    lengths = [len(window.ids) - 1 - past for window in windows]
    ids = torch.zeros(len(windows), max(lengths), dtype=torch.long)  # (R, T); nothing attends to padding
    predicts = torch.zeros_like(ids, dtype=torch.bool)  # (R, T)
    for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        ids[row, :length] = torch.tensor(window.ids[past:-1])
        predicts[row, length - window.predicted : length] = True
    targets = torch.tensor([target for window in windows for target in window.ids[-window.predicted :]])

    states = model.hidden_states(ids.to(device), cache)[predicts.to(device)]  # (N, C)
    nats, is_likeliest = [], []
    for chunk, chunk_targets in zip(
        states.split(POSITIONS_PER_PROJECTION),
        targets.to(device).split(POSITIONS_PER_PROJECTION),
        strict=True,
    ):
        logits = model.head(chunk)[:, :vocab_size].float()  # (n, vocabulary)
        nats.append(F.cross_entropy(logits, chunk_targets, reduction="none"))
        is_likeliest.append(logits.argmax(-1) == chunk_targets)

    counts = [window.predicted for window in windows]
    sums = (-part.double().sum().item() for part in torch.cat(nats).cpu().split(counts))
    greedy = (bool(part.all()) for part in torch.cat(is_likeliest).cpu().split(counts))
    return list(map(Score, sums, greedy))
