"""Schedules: the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Schedule(Protocol):
    """Maps a step, counted from 0, to its learning rate."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    learning_rate: float

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class WarmupCosine:
    """nanoGPT's schedule: linear warmup, cosine decay to `min_lr` at `lr_decay_iters`, then constant.

    Cosine decay is from Loshchilov and Hutter 2017.
    """

    learning_rate: float
    warmup_iters: int
    lr_decay_iters: int
    min_lr: float

    def __call__(self, step: int) -> float:
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        if step >= self.lr_decay_iters:
            return self.min_lr
        progress = (step - self.warmup_iters) / (self.lr_decay_iters - self.warmup_iters)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (self.learning_rate - self.min_lr)


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warmup, a constant rate, and from `cooldown_start` to `lr_decay_iters` linear decay to `min_lr`.

    "WSD" is from Hu et al. 2024 (MiniCPM). Until the cooldown the rates do not depend on how long the run is.
    """

    learning_rate: float
    warmup_iters: int
    cooldown_start: int
    lr_decay_iters: int
    min_lr: float

    def __call__(self, step: int) -> float:
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        if step < self.cooldown_start:
            return self.learning_rate
        if step >= self.lr_decay_iters:
            return self.min_lr
        left = (self.lr_decay_iters - step) / (self.lr_decay_iters - self.cooldown_start)
        return self.min_lr + left * (self.learning_rate - self.min_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set each parameter group's learning rate to `lr_scale` times `learning_rate`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
