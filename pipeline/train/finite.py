"""Stops a run at the first step whose loss or gradient is not finite, before it spoils the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipeline.config.errors import UserError


class NotFinite(UserError):
    """A loss or a gradient is not finite. The run's files are as they were before that step."""

    status = 3


@dataclass(frozen=True)
class Incident:
    """The step, counted from 1, whose loss (nats) or gradient norm is not finite."""

    step: int
    loss: float
    grad_norm: float | None

    def __str__(self) -> str:
        if self.grad_norm is None or self.loss - self.loss != 0:
            return f"step {self.step:,}: the training loss is {self.loss}"
        return f"step {self.step:,}: the norm of the gradient is {self.grad_norm}"


class Finite:
    """Notes the first step that is not finite without waiting for the device.

    From that step on `found` is 1.0, and the optimizer leaves weights and moments as they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros((), device=device)
        self._first = torch.zeros(3, dtype=torch.float64, device=device)  # step, loss, norm

    def look(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Take in the loss and the gradient norm of a step. Both are scalars on the device."""
        if loss.device.type == "cpu" and math.isfinite(loss.item()) and math.isfinite(grad_norm.item()):
            return  # a CPU need not be waited for
        steps = torch.full_like(loss, step, dtype=torch.float64)
        this = torch.stack([steps, loss.double(), grad_norm.double()])
        bad = ~this.isfinite().all()
        self._first = torch.where(bad & (self.found == 0), this, self._first)
        self.found = torch.maximum(self.found, bad.float())

    def incident(self) -> Incident | None:
        """Wait for the device, and tell what was found."""
        if not self.found.item():
            return None
        step, loss, grad_norm = self._first.tolist()
        return Incident(int(step), loss, grad_norm)

    def forget(self) -> None:
        """Go on after a step that was left out."""
        self.found.zero_()
