"""A recurrent trunk: one shared block in a loop of variable length, between blocks that run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.model.block import Block, LayerDropout
from pipeline.model.context import Context
from pipeline.model.depth_distribution import DepthDistribution
from pipeline.model.halting import EveryStep, LearnedStopping, StickyDropout
from pipeline.model.linear import Linear
from pipeline.model.trunk import Trunk


class AddedNoise(nn.Module):
    """Adds normal noise to the residual stream, in training only. (B, T, C) -> (B, T, C)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.std * torch.randn_like(x) if self.training else x


class ConcatenatedNoise(nn.Module):
    """Concatenates noise channels to the residual stream and adds a linear map of both to the stream.

    (B, T, C) -> (B, T, C). The noise is normal in training and zero in evaluation.
    """

    def __init__(self, n_embd: int, channels: int, std: float, bias: bool) -> None:
        super().__init__()
        self.channels = channels
        self.std = std
        self.mix = Linear(n_embd + channels, n_embd, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.channels)
        noise = self.std * torch.randn(shape, device=x.device) if self.training else x.new_zeros(shape)
        return x + self.mix(torch.cat([x, noise.to(x.dtype)], dim=-1))


class Injection(nn.Module):
    """Adds a linear map of [stream, prelude output] to the residual stream (Geiping et al. 2025)."""

    def __init__(self, n_embd: int, bias: bool) -> None:
        super().__init__()
        self.adapter = Linear(2 * n_embd, n_embd, bias=bias)

    def forward(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return x + self.adapter(torch.cat([x, start], dim=-1))


class RecurrentStep(nn.Module):
    """The shared block, with optional injection and noise before it and an optional norm after it."""

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
        """Residual stream x and `start`, the prelude's output, both (B, T, C) -> (B, T, C)."""
        x = self.block(self._block_input(x, start), context, layer_index)
        return self.norm(x) if self.norm is not None else x

    def fill_cache(self, x: torch.Tensor, start: torch.Tensor, context: Context, layer_index: int) -> None:
        self.block.fill_cache(self._block_input(x, start), context, layer_index)

    def _block_input(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        x = self.injection(x, start) if self.injection is not None else x
        return self.noise(x) if self.noise is not None else x


class Recurrence(Trunk):
    """A prelude of blocks, a loop over one shared step, and a coda of blocks.

    The loop takes `depth` steps unless the call gives another number. With `distribution`, training draws the
    number from it, and the depth curve goes up to twice `depth`. `halting` may stop sequences or tokens
    earlier. Gradients flow through the last `backprop_depth` steps (None: all). Backward treats earlier steps
    as the identity, so the prelude and the embedding still get a gradient.
    """

    unit = "steps of the shared block"

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
        """The residual stream (B, T, C) after each step."""
        for layer_index, block in enumerate(self.prelude):
            x = block(x, context, layer_index)
        steps = _LoopSteps(self.step, x, context, len(self.prelude), depth - (self.backprop_depth or depth))
        return self.halting(steps, x, depth, context)

    def _finish(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        for index, block in enumerate(self.coda):
            x = block(x, context, -1 - index)  # negative, so independent of the loop's depth
        return x


@dataclass(frozen=True)
class _LoopSteps:
    """The loop steps of one forward pass, applied to all sequences or to some."""

    step: RecurrentStep
    start: torch.Tensor
    context: Context
    first_layer_index: int
    steps_without_gradient: int

    def advance(self, x: torch.Tensor, n: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        if n >= self.steps_without_gradient or not torch.is_grad_enabled():
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
