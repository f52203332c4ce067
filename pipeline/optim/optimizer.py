"""An optimizer whose parameter groups may follow different rules: AdamW here, Muon there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

State = dict[str, torch.Tensor]  # what an optimizer remembers of one parameter


class Rule(Protocol):
    """How a group of parameters is updated."""

    def __call__(
        self,
        group: dict[str, Any],
        parameters: dict[str, torch.Tensor],
        states: list[State],
        found_inf: torch.Tensor | None,
    ) -> None:
        """Update `parameters`, which all have gradients, and their states, in place.

        `group` has `lr` and `weight_decay`. `found_inf` is as in Optimizer.
        """


class Optimizer(torch.optim.Optimizer):
    """Updates each parameter group by its own rule.

    Each group is a dict with `params`, their `param_names`, `rule`, `lr` and `weight_decay`. The methods
    overridden here would import PyTorch's compiler: 75 MB and a second at every start.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """`found_inf` is None, or a scalar tensor on the parameters' device: at 1.0, steps change nothing."""
        self.found_inf: torch.Tensor | None = None
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        assert set_to_none, "set_to_none = False is not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            named = zip(group["param_names"], group["params"], strict=True)
            updated = {name: parameter for name, parameter in named if parameter.grad is not None}
            if updated:
                rule: Rule = group["rule"]
                states = [self.state[parameter] for parameter in updated.values()]
                rule(group, updated, states, self.found_inf)
