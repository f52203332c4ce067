"""Continuous batching: sequences join and leave while the others go on, one forward pass for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from pipeline.config.errors import UserError
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.model.row_cache import RowCache
from pipeline.serve.drawing import Choice, Drawing

POSITIONS_AT_ONCE = 256  # of a prompt that is scored; bounds the logits in memory


class Token(NamedTuple):
    """A token, and what the model says about its place: natural logarithms at temperature 1."""

    id: int
    log_probability: float | None  # None if nobody asked, and for the first token of a prompt
    likeliest: tuple[tuple[int, float], ...]  # ids with their log-probabilities, the likeliest first


@dataclass
class Prompt:
    """The beginning of one or more sequences, and what is to be told of each token."""

    ids: Sequence[int]
    choices: Sequence[Choice]  # one for each sequence
    alternatives: int | None = None  # how many of the likeliest tokens to tell; None: no log-probabilities
    score: bool = False  # whether the tokens of the prompt are scored, too
    scores: list[Token] = field(default_factory=list)  # those of the prompt, from the second on
    rows: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [Row(self, choice, list(self.ids)) for choice in self.choices]


@dataclass(eq=False)
class Row:
    """A sequence of the batch."""

    prompt: Prompt
    choice: Choice
    ids: list[int]

    @property
    def drawn(self) -> int:
        return len(self.ids) - len(self.prompt.ids)


class Batch:
    """The sequences that one model continues at one depth.

    Each gets the logits, within rounding, that it would get alone; `Reader` says how the window slides.
    """

    def __init__(self, model: GPT, vocab_size: int, depth: int | None, device: torch.device) -> None:
        self._model = model
        self._vocab_size = vocab_size  # ids from here on are padding and never chosen
        self._depth = depth
        self._device = device
        self._cache = RowCache(model.block_size)
        self._cached: list[Row] = []  # in the order of the cache
        self._shifted: list[Row] = []  # beyond learned positions: the window is read again for each token
        self._drawing: Drawing | None = None

    def __len__(self) -> int:
        return len(self._cached) + len(self._shifted)

    @torch.inference_mode()
    def step(self, joining: Sequence[Prompt] = ()) -> list[tuple[Row, Token]]:
        """The next token of each sequence, also of those that join now.

        Raises UserError if the first logits after a prompt are not finite.
        """
        logits = self._next_logits(joining)
        rows = [*self._cached, *self._shifted]
        if not rows:
            return []
        if self._drawing is None:
            self._drawing = Drawing([row.choice for row in rows], self._vocab_size)
        chosen = self._drawing(logits, [row.drawn for row in rows])  # (B,)
        told = [row.prompt.alternatives for row in rows]
        tokens = described(logits, chosen, told)
        for row, token in zip(rows, tokens, strict=True):
            row.ids.append(token.id)
        return list(zip(rows, tokens, strict=True))

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Forget a sequence."""
        self._drawing = None
        if row in self._shifted:
            self._shifted.remove(row)
            return
        index, last = self._cached.index(row), self._cached.pop()
        self._cache.leave(index)
        if last is not row:
            self._cached[index] = last

    def _next_logits(self, joining: Sequence[Prompt]) -> torch.Tensor:
        """Logits (B, vocabulary) on the CPU after each sequence: the cached ones, and then the shifted."""
        if not self._model.slides:
            for row in [row for row in self._cached if len(row.ids) > self._model.block_size]:
                self.leave(row)
                self._shifted.append(row)
        cached = [self._read_last_tokens()] if self._cached else []
        shifted = [self._read_windows()] if self._shifted else []
        for prompt in joining:
            logits = self._read_prompt(prompt)
            if prompt.rows:
                self._drawing = None
                cached.append(logits.expand(len(prompt.rows), -1))
                self._cached += prompt.rows
        found = [part[:, : self._vocab_size].float().cpu() for part in (*cached, *shifted)]
        return torch.cat(found) if found else torch.empty(0, self._vocab_size)

    def _read_last_tokens(self) -> torch.Tensor:
        if self._cache.length == 2 * self._model.block_size:
            self._model.count_anew(self._cache)
        last = [row.ids[-1:] for row in self._cached]
        last += [[0]] * (self._cache.width - len(last))
        ids = torch.tensor(last, device=self._device)  # (rows of a pass, 1)
        return self._model.next_logits(ids, self._cache, self._depth)[: len(self._cached)]

    def _read_windows(self) -> torch.Tensor:
        windows = [row.ids[-self._model.block_size :] for row in self._shifted]  # all are full
        return self._model.next_logits(torch.tensor(windows, device=self._device), None, self._depth)

    def _read_prompt(self, prompt: Prompt) -> torch.Tensor:
        """The logits (1, vocabulary) after a prompt, whose sequences join the cache."""
        assert 0 < len(prompt.ids) <= self._model.block_size
        ids = torch.tensor([list(prompt.ids)], device=self._device)  # (1, T)
        cache = KVCache(len(prompt.ids), 1)
        if prompt.score:
            states = self._model.hidden_states(ids, cache, self._depth)[0]  # (T, C)
            prompt.scores = self._scores(states[:-1], ids[0, 1:], prompt.alternatives)
            logits = self._model.head(states[-1:])
        else:
            logits = self._model.next_logits(ids, cache, self._depth)
        if not logits.isfinite().all():
            raise UserError("the model's logits are not numbers; its weights are damaged or it diverged")
        for _ in prompt.rows:
            self._cache.join(cache)
        return logits

    def _scores(self, states: torch.Tensor, ids: torch.Tensor, alternatives: int | None) -> list[Token]:
        """Each of the tokens (T,) that follow states (T, C)."""
        scores: list[Token] = []
        for some, next_ids in zip(states.split(POSITIONS_AT_ONCE), ids.split(POSITIONS_AT_ONCE), strict=True):
            logits = self._model.head(some)[:, : self._vocab_size].float().cpu()
            scores += described(logits, next_ids.cpu(), [alternatives or 0] * len(next_ids))
        return scores


def described(logits: torch.Tensor, ids: torch.Tensor, told: Sequence[int | None]) -> list[Token]:
    """What logits (N, vocabulary) say of tokens (N,), with so many alternatives of each; None: nothing."""
    if all(count is None for count in told):
        return [Token(id, None, ()) for id in ids.tolist()]
    normalizers = logits.logsumexp(-1, keepdim=True)  # (N, 1)
    own = (logits.gather(-1, ids[:, None]) - normalizers)[:, 0].tolist()
    most = min(max(count or 0 for count in told), logits.shape[1])
    values, likeliest = (logits - normalizers).topk(most) if most else (logits[:, :0], ids[:, None][:, :0])
    lists = zip(ids.tolist(), own, likeliest.tolist(), values.tolist(), told, strict=True)
    return [
        Token(id, nats, tuple(zip(best[: count or 0], best_nats[: count or 0], strict=True)))
        for id, nats, best, best_nats, count in lists
    ]
