"""Accumulates what goes into the next log row: loss, the model's figures, time."""

from __future__ import annotations

import time

import torch

from pipeline.distributed.world import world
from pipeline.model.gpt import Loss
from pipeline.train.checkpoint import Interval


class Meter:
    """Measures time, and sums losses and figures on the device so that no step waits for them."""

    def __init__(self, interval: Interval, device: torch.device) -> None:
        """Start from the sums in `interval`; `sync` writes the new sums back to it."""
        self._interval = interval
        self._loss = torch.tensor(interval.loss, device=device)
        self._figures = {name: torch.tensor(value, device=device) for name, value in interval.figures.items()}
        self._clock = time.perf_counter()

    def add(self, loss: Loss, micro_batches: int) -> None:
        """Add the loss of one micro-batch, of `micro_batches` in the step."""
        self._loss += loss.cross_entropy / micro_batches
        for name, value in loss.figures.items():
            self.report(name, value)

    def report(self, name: str, value: torch.Tensor) -> None:
        """Add a value to those whose mean in the interval is the figure."""
        counts = self._interval.reports
        self._figures[name] = self._figures[name] + value if name in counts else value
        counts[name] = counts.get(name, 0) + 1

    def sync(self) -> None:
        """Wait for the device and write the sums into the interval: of several ranks, the means of theirs."""
        self._loss = world().mean(self._loss)
        self._figures = {name: world().mean(self._figures[name]) for name in sorted(self._figures)}
        self._interval.loss = self._loss.item()
        self._interval.figures = {name: value.tolist() for name, value in self._figures.items()}

    def means(self) -> dict[str, float]:
        """Mean of each figure in the interval; one with a value per expert gives `name_0`, `name_1`, …"""
        means: dict[str, float] = {}
        for name, total in self._interval.figures.items():
            reports = self._interval.reports[name]
            if isinstance(total, list):
                means |= {f"{name}_{index}": value / reports for index, value in enumerate(total)}
            else:
                means[name] = total / reports
        return means

    def begin_interval(self, interval: Interval) -> None:
        """Start the next interval at zero."""
        self._interval = interval
        self._loss.zero_()
        self._figures = {}

    def restart_clock(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        return elapsed
