"""When a loop ends, sequence by sequence or token by token: the halting policies of a recurrence.

A policy runs the loop. It calls `steps.advance(x, n, rows)` for step n, on all sequences or on some, and
yields the residual stream after each step; it also counts in `report.mean_depth` how many steps were taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from pipeline.model.context import Context
from pipeline.model.part import Part


class Steps(Protocol):
    """The steps of one pass through a loop."""

    def advance(self, x: torch.Tensor, n: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Step n on x (B, T, C), or on those `rows` of the batch that x holds."""

    def fill_cache(self, x: torch.Tensor, n: int, rows: torch.Tensor) -> None:
        """Leave in step n's cache what later tokens attend to there, for sequences that have stopped."""


class EveryStep(nn.Module):
    """Every sequence takes every step."""

    def forward(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        for n in range(depth):
            x = steps.advance(x, n)
            context.report.mean_depth += 1
            yield x


class StickyDropout(nn.Module):
    """After each step, in training, a sequence drops out of all further ones with a probability.

    What is dropped is not computed. After training, every sequence takes every step.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        probability = self.probability if self.training else 0.0
        batch = x.shape[0]
        rows = torch.arange(batch, device=x.device)
        for n in range(depth):
            if len(rows) == batch:
                x = steps.advance(x, n)
            elif len(rows):
                x = x.index_copy(0, rows, steps.advance(x[rows], n, rows))
            context.report.mean_depth += len(rows) / batch
            yield x
            if probability:
                rows = rows[torch.rand(len(rows), device=x.device) >= probability]


class StoppingGate(Part):
    """The probability that a token stops here, from its own state, which has seen its past only.

    (B, T, C) -> (B, T, 1). It keeps `min_prob` away from 0 and 1, and is just that for the first
    `warmup_steps` optimizer steps.
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
        self.hidden = nn.Linear(n_embd, n_embd)
        self.activation = nn.GELU()
        self.logit = nn.Linear(n_embd, 1)
        self.register_buffer("steps", torch.zeros(()))  # optimizer steps taken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.logit(self.activation(self.hidden(self.norm(x)))).float()
        probability = torch.sigmoid(logit / self.temperature)
        probability = probability * (self.steps >= self.warmup_steps)  # also where training is evaluated
        return self.min_prob + (1 - 2 * self.min_prob) * probability

    def after_step(self) -> None:
        self.steps += 1


class LearnedStopping(Part):
    """A gate decides after each step which tokens go on; softly, so that it can be trained.

    Of a token's mass, 1 at first, the share that the gate gives stops; what is left, s, weighs the next step:
    x + s (step(x) − x). So the stopping step of a token has a distribution over 1 … n, masses that sum to
    one, as in PonderNet (Banino et al. 2021), and its expected depth is the sum of what was left at each
    step. The loss gets `controller_weight` (mean depth − target)², minus `entropy_weight` times the entropy
    of that distribution.

    With a threshold, a token stops for good once so much of its mass has stopped (Graves 2016): what further
    steps could add has little weight then. A sequence none of whose tokens goes on is not computed.
    """

    eager = ("forward", "_soft", "_hard")  # the number of steps changes
    eager_recursively = ("_report",)

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
        self.threshold = threshold  # None decides softly

    def forward(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        if self.training or self.threshold is None:
            return self._soft(steps, x, depth, context)
        return self._hard(steps, x, depth, context, self.threshold)

    def _soft(self, steps: Steps, x: torch.Tensor, depth: int, context: Context) -> Iterator[torch.Tensor]:
        going = x.new_ones(*x.shape[:2], 1, dtype=torch.float32)  # (B, T, 1): the mass that has not stopped
        stopped, expected_depth = [], torch.zeros_like(going)
        for n in range(depth):
            if n:
                probability = self.gate(x)
                stopped.append(going * probability)
                going = going * (1 - probability)
            expected_depth = expected_depth + going
            x = lerp(x, steps.advance(x, n), going)
            context.report.mean_depth += going.detach().mean()
            yield x
        masses = torch.cat([*stopped, going], dim=-1)  # (B, T, depth): of stopping after step 1, 2, ...
        self._report(masses, expected_depth.mean(), depth, context)

    def _hard(
        self, steps: Steps, x: torch.Tensor, depth: int, context: Context, threshold: float
    ) -> Iterator[torch.Tensor]:
        left = x.new_ones(*x.shape[:2], 1, dtype=torch.float32)  # (B, T, 1): the mass that has not stopped
        for n in range(depth):
            if n:
                left = left * (1 - self.gate(x))
            going = left >= 1 - threshold  # for good: what is left only falls
            context.report.mean_depth += going.float().mean()
            some = going.any(dim=1)[:, 0]  # (B): sequences with a token that goes on
            rows = some.nonzero()[:, 0]
            if context.cache is not None and len(rows) < len(some):
                rest = (~some).nonzero()[:, 0]
                steps.fill_cache(x[rest], n, rest)
            if len(rows):
                further = lerp(x[rows], steps.advance(x[rows], n, rows), left[rows])
                x = x.index_copy(0, rows, torch.where(going[rows], further, x[rows]))
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
    """As far from x towards `further`, (B, T, C) both, as a weight (B, T, 1) says."""
    return x + weight.to(x.dtype) * (further - x)
