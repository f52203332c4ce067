"""How likely a model finds continuations of contexts, and long texts: what every zero-shot task asks.

Scores are sums of log-probabilities in nats. Contexts that several continuations share are read once, and
only the positions that predict something go through the projection to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pipeline.config.errors import UserError
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.tokens.tokenizers import Tokenizer

POSITIONS_PER_PROJECTION = 256  # bounds the logits in memory: 50 MB with GPT-2's vocabulary
MAX_PADDING = 0.2  # of the longest sequence in a batch


class Group(NamedTuple):
    """Continuations of one context, in ids; the context and each continuation have at least one."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


class Score(NamedTuple):
    """What a model makes of one continuation."""

    log_probability: float  # nats, summed over its tokens
    greedy: bool  # whether each of its tokens is the likeliest where it stands


@torch.inference_mode()
def score(
    model: GPT, groups: Sequence[Group], vocab_size: int, device: torch.device, batch_size: int
) -> Iterator[tuple[int, list[Score]]]:
    """Yield (index of a group, a Score for each of its continuations), in an order that is fast.

    `batch_size` sequences are computed together. What does not fit `block_size` loses the beginning of its
    context, as in lm-evaluation-harness; a continuation longer than that is read in windows end to end. Ids
    from `vocab_size` on are padding, which no probability is given to.
    """
    assert not model.training, "dropout would make the scores random"
    shared = [_shared_positions(group, model.block_size) for group in groups]
    similar = sorted(range(len(groups)), key=lambda i: (shared[i], _longest(groups[i])), reverse=True)
    for first in range(0, len(groups), batch_size):
        batch = similar[first : first + batch_size]
        past = min(shared[index] for index in batch)
        together = [groups[index] for index in batch]
        scores = _score_batch(model, together, past, vocab_size, device, batch_size)
        yield from zip(batch, scores, strict=True)


def sliding_windows(ids: Sequence[int], block_size: int, stride: int) -> list[Group]:
    """Windows of `block_size` tokens on a long text, one every `stride` < `block_size` tokens.

    Each predicts what the one before it did not reach: every token but the text's first is predicted once,
    from at least `block_size - stride` tokens where there are so many. It is the recipe in the documentation
    of transformers, "Perplexity of fixed-length models".
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
    """Ids of a context and of what continues it, cut as lm-evaluation-harness cuts them.

    Spaces at the end of the context go to the continuation, and the two are tokenized as one text, of which
    the context's own number of tokens is the context. The end-of-text token stands for an empty one. Raises
    UserError where there is no such token, and for text that the tokenizer cannot encode.
    """
    assert continuation, "there is nothing to predict"
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation).tolist()
    if not stripped:
        return [end_of_text(tokenizer)], whole
    length = min(len(tokenizer.encode(stripped)), len(whole) - 1)  # a token on the border is predicted
    return whole[:length], whole[length:]


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that stands where nothing is known yet. Raises UserError if the tokenizer has none."""
    if tokenizer.end_of_text is None:
        raise UserError(
            "an empty context needs an end-of-text token, which the model's tokenizer lacks; "
            "use a model trained on documents"
        )
    return tokenizer.end_of_text


class _Window(NamedTuple):
    """At most block_size + 1 ids, of which the last `predicted` are, for a continuation of a batch's row."""

    row: int
    continuation: int
    ids: list[int]
    predicted: int


def _windows(group: Group, row: int, block_size: int) -> Iterator[_Window]:
    """One window for each continuation, or several, from its end, if it is longer than block_size."""
    first = len(group.context)
    for number, continuation in enumerate(group.continuations):
        ids = [*group.context, *continuation]
        while len(ids) > first:
            start = max(0, len(ids) - block_size - 1)
            predicted = len(ids) - max(first, start + 1)
            yield _Window(row, number, ids[start:], predicted)
            ids = ids[:-predicted]


def _longest(group: Group) -> int:
    """Tokens of the context and the longest of its continuations."""
    return len(group.context) + max(map(len, group.continuations))


def _shared_positions(group: Group, block_size: int) -> int:
    """Positions that can be read once for all continuations: the last id of a context predicts already."""
    return len(group.context) - 1 if _longest(group) <= block_size + 1 else 0


def _score_batch(
    model: GPT, groups: list[Group], past: int, vocab_size: int, device: torch.device, batch_size: int
) -> list[list[Score]]:
    """Scores of groups whose contexts' first `past` ids can be read once."""
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
    for some in _similar(windows, past, batch_size):
        rows = torch.tensor([window.row for window in some], device=device)
        own = None if cache is None else cache.select(rows)
        for window, new in zip(some, _score_windows(model, some, past, own, vocab_size, device), strict=True):
            so_far = scores[window.row][window.continuation]
            total = so_far.log_probability + new.log_probability
            scores[window.row][window.continuation] = Score(total, so_far.greedy and new.greedy)
    return scores


def _similar(windows: list[_Window], past: int, batch_size: int) -> Iterator[list[_Window]]:
    """The windows in batches of at most `batch_size`, the longest first, in which little is padding."""
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
    """Scores of windows whose first `past` ids are in the cache."""
    lengths = [len(window.ids) - 1 - past for window in windows]
    ids = torch.zeros(len(windows), max(lengths), dtype=torch.long)  # (R, T); nothing looks back at padding
    predicts = torch.zeros_like(ids, dtype=torch.bool)  # (R, T)
    for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        ids[row, :length] = torch.tensor(window.ids[past:-1])
        predicts[row, length - window.predicted : length] = True
    targets = torch.tensor([target for window in windows for target in window.ids[-window.predicted :]])

    states = model.hidden_states(ids.to(device), cache)[predicts.to(device)]  # (N, C)
    nats, likeliest = [], []
    for some, wanted in zip(
        states.split(POSITIONS_PER_PROJECTION),
        targets.to(device).split(POSITIONS_PER_PROJECTION),
        strict=True,
    ):
        logits = model.head(some)[:, :vocab_size].float()  # (n, vocabulary)
        nats.append(F.cross_entropy(logits, wanted, reduction="none"))
        likeliest.append(logits.argmax(-1) == wanted)

    counts = [window.predicted for window in windows]
    sums = (-part.double().sum().item() for part in torch.cat(nats).cpu().split(counts))
    greedy = (bool(part.all()) for part in torch.cat(likeliest).cpu().split(counts))
    return list(map(Score, sums, greedy))
