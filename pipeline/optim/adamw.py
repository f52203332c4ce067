"""AdamW with PyTorch's fused kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adamw import adamw

from pipeline.distributed.sharded import local
from pipeline.optim.optimizer import State


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019), one fused update for a parameter group.

    It runs the same kernel as `torch.optim.AdamW`, whose constructor imports the compiler.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __call__(
        self,
        group: dict[str, Any],
        parameters: dict[str, torch.Tensor],
        states: list[State],
        found_inf: torch.Tensor | None,
    ) -> None:
        for parameter, state in zip(parameters.values(), states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(  # value by value, so each rank updates its pieces
            [local(parameter) for parameter in parameters.values()],
            [local(parameter.grad) for parameter in parameters.values() if parameter.grad is not None],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.eps,
            maximize=False,
        )
