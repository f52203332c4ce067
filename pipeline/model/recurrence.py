"""A loop over one block, applied as often as each call asks for, between blocks that run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.model.block import Block, LayerDropout
from pipeline.model.context import Context
from pipeline.model.depth_distribution import DepthDistribution
from pipeline.model.halting import EveryStep, LearnedStopping, StickyDropout
from pipeline.model.trunk import Trunk


class AddedNoise(nn.Module):
    """Normal noise on the residual stream, in training only. (B, T, C) -> (B, T, C)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.std * torch.randn_like(x) if self.training else x


class ConcatenatedNoise(nn.Module):
    """Channels of normal noise beside the residual stream, mixed into it; zeros after training."""

    def __init__(self, n_embd: int, channels: int, std: float, bias: bool) -> None:
        super().__init__()
        self.channels = channels
        self.std = std
        self.mix = nn.Linear(n_embd + channels, n_embd, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.channels)
        noise = self.std * torch.randn(shape, device=x.device) if self.training else x.new_zeros(shape)
        return x + self.mix(torch.cat([x, noise.to(x.dtype)], dim=-1))


class Injection(nn.Module):
    """Adds to the stream what a step makes of it and of the prelude's output (Geiping et al. 2025)."""

    def __init__(self, n_embd: int, bias: bool) -> None:
        super().__init__()
        self.adapter = nn.Linear(2 * n_embd, n_embd, bias=bias)

    def forward(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return x + self.adapter(torch.cat([x, start], dim=-1))


class RecurrentStep(nn.Module):
    """One application of the shared block, with slots for what happens before and after it."""

    def __init__(
        self,
        block: Block | LayerDropout,
        injection: Injection | None = None,
        noise: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.injection = injection
        self.noise = noise
        self.block = block
        self.norm = norm

    def forward(
        self, x: torch.Tensor, start: torch.Tensor, context: Context, layer_index: int
    ) -> torch.Tensor:
        """The stream x and where the loop started from, both (B, T, C) -> (B, T, C)."""
        x = self.block(self._before(x, start), context, layer_index)
        return self.norm(x) if self.norm is not None else x

    def fill_cache(self, x: torch.Tensor, start: torch.Tensor, context: Context, layer_index: int) -> None:
        self.block.fill_cache(self._before(x, start), context, layer_index)

    def _before(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        x = self.injection(x, start) if self.injection is not None else x
        return self.noise(x) if self.noise is not None else x


class Recurrence(Trunk):
    """A prelude of blocks, a step taken again and again, and a coda of blocks.

    `depth` steps are taken unless a call asks for another number. With `distribution`, training draws it; the
    depth curve then reaches twice as deep as `depth`. `halting` may let sequences or tokens end earlier.
    Gradients go through the last `backprop_depth` steps (all, if None); the steps before pass them on as the
    identity, so that the prelude and the embedding are trained too.
    """

    unit = "steps of the shared block"
    eager = ("forward", "_states")  # the number of steps changes from call to call

    def __init__(
        self,
        prelude: Sequence[Block | LayerDropout],
        step: RecurrentStep,
        coda: Sequence[Block | LayerDropout],
        depth: int,
        halting: EveryStep | StickyDropout | LearnedStopping,
        distribution: DepthDistribution | None = None,
        backprop_depth: int | None = None,
        scale_loss: bool = False,
    ) -> None:
        super().__init__()
        self.prelude = nn.ModuleList(prelude)
        self.step = step
        self.coda = nn.ModuleList(coda)
        self.halting = halting
        self.distribution = distribution
        self.backprop_depth = backprop_depth
        self.scale_loss = scale_loss
        self._depth = depth

    @property
    def depth(self) -> int:
        return self._depth

    @property
    def depths(self) -> Sequence[int]:
        return range(1, (1 if self.distribution is None else 2) * self.depth + 1)

    def forward(self, x: torch.Tensor, context: Context, depth: int | None = None) -> torch.Tensor:
        for state in self._states(x, context, depth or self.depth):
            x = state
        report = context.report
        if self.training:
            report.add("mean_depth", torch.as_tensor(report.mean_depth))
            if self.scale_loss:
                report.loss_scale = report.mean_depth / self.depth
        return self._finish(x, context)

    def readings(self, x: torch.Tensor, context: Context) -> Iterator[torch.Tensor]:
        for state in self._states(x, context, self.depths[-1]):
            yield self._finish(state, context)

    def blocks(self) -> list[nn.Module]:
        return [*self.prelude, *[self.step] * self.depth, *self.coda]

    def _states(self, x: torch.Tensor, context: Context, depth: int) -> Iterator[torch.Tensor]:
        """The stream after each step."""
        for layer_index, block in enumerate(self.prelude):
            x = block(x, context, layer_index)
        steps = _LoopSteps(self.step, x, context, len(self.prelude), depth - (self.backprop_depth or depth))
        return self.halting(steps, x, depth, context)

    def _finish(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        for index, block in enumerate(self.coda):
            x = block(x, context, -1 - index)  # whatever the depth, the same places
        return x


@dataclass(frozen=True)
class _LoopSteps:
    """The steps of one forward pass, for whatever sequences are still going."""

    step: RecurrentStep
    start: torch.Tensor
    context: Context
    first_layer_index: int
    without_gradient: int

    def advance(self, x: torch.Tensor, n: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        if n >= self.without_gradient or not torch.is_grad_enabled():
            return self._advance(x, n, rows)
        with torch.no_grad():
            change = self._advance(x, n, rows) - x
        return x + change

    def fill_cache(self, x: torch.Tensor, n: int, rows: torch.Tensor) -> None:
        self.step.fill_cache(x, self.start[rows], self.context.select(rows), self.first_layer_index + n)

    def _advance(self, x: torch.Tensor, n: int, rows: torch.Tensor | None) -> torch.Tensor:
        start, context = self.start, self.context
        if rows is not None:
            start, context = start[rows], context.select(rows)
        return self.step(x, start, context, self.first_layer_index + n)
