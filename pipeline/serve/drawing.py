"""Which token comes next, for sequences that each have their own settings and their own random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.tokens.keyed_random import mix


@dataclass(frozen=True)
class Choice:
    """How the tokens of one sequence are chosen. A temperature of 0 takes the likeliest one."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0  # 0 … 2^63 - 1
    number: int = 0  # of the sequences with one seed; each has its own random numbers


class Drawing:
    """Draws tokens for B sequences, one `Choice` each.

    The random number of a candidate is a hash of the sequence's seed, how many tokens it has drawn, and the
    candidate's id. So a seed decides a text, whatever else is drawn at the same time. Candidates compete as
    in the Gumbel-max trick: what a batch changes in the logits, about 1e-6, changes the winner no more often
    than once in a million tokens. A walk along the cumulative distribution would turn at the many borders of
    a large vocabulary.
    """

    def __init__(self, choices: Sequence[Choice], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        seeds = np.array([choice.seed for choice in choices], dtype=np.uint64)
        numbers = np.array([choice.number for choice in choices], dtype=np.uint64)
        self._keys = mix(mix(seeds) ^ numbers)  # (B,)
        temperatures = torch.tensor([choice.temperature for choice in choices], dtype=torch.float64)
        self._temperatures = temperatures.where(temperatures > 0, 1.0)[:, None]
        top_k = [
            min(choice.top_k or vocab_size, vocab_size) if choice.temperature else 1 for choice in choices
        ]
        self._top_k = torch.tensor(top_k)[:, None]
        self._most = min(max(top_k), vocab_size)
        top_p = [1.0 if choice.top_p is None else choice.top_p for choice in choices]
        self._top_p = torch.tensor(top_p, dtype=torch.float64)[:, None] if min(top_p) < 1 else None
        self._sorted = min(top_k) < vocab_size or self._top_p is not None

    def __call__(self, logits: torch.Tensor, drawn: Sequence[int]) -> torch.Tensor:
        """The ids (B,) chosen by logits (B, vocabulary) on the CPU, after so many tokens of each sequence."""
        if self._most == 1:
            return logits.argmax(-1)
        if self._sorted:
            logits, ids = logits.topk(self._most)  # (B, candidates), the likeliest first
        else:
            ids = torch.arange(self._vocab_size)[None]  # (1, candidates)
        logits = (logits - logits.amax(-1, keepdim=True)).double() / self._temperatures
        if self._sorted:
            logits = logits.masked_fill(torch.arange(self._most) >= self._top_k, -torch.inf)
        if self._top_p is not None:  # nucleus sampling (Holtzman et al. 2020)
            probabilities = logits.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities
            logits = logits.masked_fill(before >= self._top_p, -torch.inf)
        winners = (logits + self._gumbel(ids, drawn)).argmax(-1, keepdim=True)  # (B, 1)
        return ids.expand(len(winners), -1).gather(-1, winners)[:, 0]

    def _gumbel(self, ids: torch.Tensor, drawn: Sequence[int]) -> torch.Tensor:
        """Gumbel-distributed numbers (B, candidates)."""
        keys = mix(self._keys + np.array(drawn, dtype=np.uint64))[:, None]
        bits = mix(keys ^ ids.numpy().astype(np.uint64))
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53  # in (0, 1)
        return torch.from_numpy(-np.log(-np.log(uniform)))
