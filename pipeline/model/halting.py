"""Halting policies of a recurrence: they decide when the loop ends for each sequence or token.

A policy runs the loop. For step n it calls `steps.advance(x, n, rows)` on all or some of the sequences, and
yields the residual stream after each step. It also adds up the steps taken in `report.mean_depth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from pipeline.model.context import Context
from pipeline.model.hooks import Part, Total, alone
from pipeline.model.linear import Linear


class Steps(Protocol):
    """The loop steps of one forward pass."""

    def advance(self, x: torch.Tensor, n: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Apply step n to x (B, T, C); `rows` are the batch indices of the sequences in x (None: all)."""

    def fill_cache(self, x: torch.Tensor, n: int, rows: torch.Tensor) -> None:
        """Cache step n's keys and values for sequences that have stopped; later tokens attend to them."""


class EveryStep(nn.Module):
    """Every sequence takes every step."""

    def forward(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        for n in range(depth):
            x = steps.advance(x, n)
            context.report.mean_depth += 1
            yield x


class StickyDropout(nn.Module):
    """In training, after each step, a sequence skips all remaining steps with this probability.

    Skipped steps are not computed. In evaluation, every sequence takes every step.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        probability = self.probability if self.training else 0.0
        batch = x.shape[0]
        left = torch.arange(batch, device="cpu")  # on the CPU, so that a GPU is not asked how many there are
        for n in range(depth):
            if len(left) == batch:
                x = steps.advance(x, n)
            elif len(left):
                rows = left.to(x.device, non_blocking=True)
                x = x.index_copy(0, rows, steps.advance(x[rows], n, rows))
            context.report.mean_depth += len(left) / batch
            yield x
            if probability:
                left = left[torch.rand(len(left), device="cpu") >= probability]


class StoppingGate(Part):
    """The halting probability of each token, (B, T, C) -> (B, T, 1).

    It depends only on the token's own state, so it stays causal. It is kept in `min_prob` … 1 - `min_prob`,
    and equals `min_prob` during the first `warmup_steps` optimizer steps.
    """

    steps: torch.Tensor

    def __init__(
        self, n_embd: int, bias: bool, temperature: float, min_prob: float, warmup_steps: int
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.min_prob = min_prob
        self.warmup_steps = warmup_steps
        self.norm = nn.LayerNorm(n_embd, bias=bias)
        self.hidden = Linear(n_embd, n_embd)
        self.activation = nn.GELU()
        self.logit = Linear(n_embd, 1)
        self.register_buffer("steps", torch.zeros(()))  # optimizer steps taken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.logit(self.activation(self.hidden(self.norm(x)))).float()
        probability = torch.sigmoid(logit / self.temperature)
        probability = probability * (self.steps >= self.warmup_steps)  # in evaluation too
        return self.min_prob + (1 - 2 * self.min_prob) * probability

    def after_step(self, total: Total = alone) -> None:
        self.steps += 1


class LearnedStopping(Part):
    """After each step, a gate decides which tokens continue.

    Soft halting, used in training because it is differentiable: each token starts with mass 1. After each
    step the gate's halting probability is the share of the remaining mass that stops. The mass s that remains
    interpolates the next step: x + s (step(x) − x). The masses that stop after steps 1 … n sum to one and
    form a distribution over depths, as in PonderNet (Banino et al. 2021). The expected depth is the sum of s
    over all steps. The loss gets `controller_weight` (mean depth − target)², minus `entropy_weight` times the
    entropy of that distribution.

    Hard halting, used in evaluation if there is a threshold: a token stops for good once more than this share
    of its mass has stopped (Graves 2016), because later steps would have little weight. A sequence is no
    longer computed once all of its tokens have stopped.
    """

    def __init__(
        self,
        gate: StoppingGate,
        controller_weight: float = 0.0,
        target_depth: float | None = None,
        entropy_weight: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.controller_weight = controller_weight
        self.target_depth = target_depth
        self.entropy_weight = entropy_weight
        self.threshold = threshold  # None: soft halting in evaluation too

    def forward(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        if self.training or self.threshold is None:
            return self._soft(steps, x, depth, context)
        return self._hard(steps, x, depth, context, self.threshold)

    def _soft(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        remaining = x.new_ones(*x.shape[:2], 1, dtype=torch.float32)  # (B, T, 1): mass not stopped yet
        stopped, expected_depth = [], torch.zeros_like(remaining)
        for n in range(depth):
            if n:
                probability = self.gate(x)
                stopped.append(remaining * probability)
                remaining = remaining * (1 - probability)
            elif depth == 1:  # the gate decides nothing, but each parameter has a gradient at any depth
                remaining = remaining + 0 * self.gate(x)
            expected_depth = expected_depth + remaining
            x = lerp(x, steps.advance(x, n), remaining)
            context.report.mean_depth += remaining.detach().mean()
            yield x
        masses = torch.cat([*stopped, remaining], dim=-1)  # (B, T, depth): mass stopped after step 1, 2, …
        self._report(masses, expected_depth.mean(), depth, context)

    def _hard(
        self, steps: Steps, x: torch.Tensor, depth: int, context: Context, threshold: float
    ) -> Iterator[torch.Tensor]:
        remaining = x.new_ones(*x.shape[:2], 1, dtype=torch.float32)  # (B, T, 1): mass not stopped yet
        for n in range(depth):
            if n:
                remaining = remaining * (1 - self.gate(x))
            active = remaining >= 1 - threshold  # the remaining mass only falls, so stopping is final
            context.report.mean_depth += active.float().mean()
            unfinished = active.any(dim=1)[:, 0]  # (B): sequences with an active token
            rows = unfinished.nonzero()[:, 0]
            if context.cache is not None and len(rows) < len(unfinished):
                finished_rows = (~unfinished).nonzero()[:, 0]
                steps.fill_cache(x[finished_rows], n, finished_rows)
            if len(rows):
                further = lerp(x[rows], steps.advance(x[rows], n, rows), remaining[rows])
                x = x.index_copy(0, rows, torch.where(active[rows], further, x[rows]))
            yield x

    def _report(self, masses: torch.Tensor, mean_depth: torch.Tensor, depth: int, context: Context) -> None:
        target = (depth + 1) / 2 if self.target_depth is None else min(self.target_depth, depth)
        entropy = -(masses * masses.clamp_min(1e-8).log()).sum(-1).mean()
        controller = self.controller_weight * (mean_depth - target) ** 2
        report = context.report
        if self.controller_weight:
            report.losses.append(controller)
        if self.entropy_weight:
            report.losses.append(-self.entropy_weight * entropy)
        report.add("controller_loss", controller)
        report.add("stopping_entropy", entropy)
        report.add("target_depth", torch.tensor(float(target)))


def lerp(x: torch.Tensor, further: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Linear interpolation from x to `further`, both (B, T, C), by `weight` (B, T, 1)."""
    return x + weight.to(x.dtype) * (further - x)
