"""Muon: momentum whose update of a matrix is made orthogonal (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.distributed.sharded import as_divided, local, piece, whole
from pipeline.distributed.world import world
from pipeline.optim.optimizer import State

# The coefficients of five Newton-Schulz steps that bring singular values from 0 to 1 towards 1: Polar Express
# (Amsel et al. 2025), where each step has its own.
COEFFICIENTS = (
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)


@dataclass(frozen=True)
class Muon:
    """Nesterov momentum, made orthogonal; for matrices (out, in) and stacks of them (experts, out, in).

    All matrices of one shape are orthogonalized together, in `dtype`; of several ranks, each does some of
    them. The entries of an update are scaled by sqrt(out / in) where a matrix has more rows than columns, so
    that outputs change alike.
    """

    momentum: float = 0.95
    dtype: torch.dtype = torch.float32

    def __call__(
        self,
        group: dict[str, Any],
        parameters: dict[str, torch.Tensor],
        states: list[State],
        found_inf: torch.Tensor | None,
    ) -> None:
        gradients = [local(parameter.grad) for parameter in parameters.values() if parameter.grad is not None]
        for parameter, state in zip(parameters.values(), states, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
        momenta = [local(state["momentum"]) for state in states]
        rate = group["lr"]
        if found_inf is not None:
            gradients = [
                torch.where(found_inf > 0, momentum, gradient)  # so that the momentum stays
                for momentum, gradient in zip(momenta, gradients, strict=True)
            ]
            rate = rate * (found_inf == 0)
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        updates = torch._foreach_lerp(gradients, momenta, self.momentum)
        if group["weight_decay"]:
            torch._foreach_mul_([local(one) for one in parameters.values()], 1 - rate * group["weight_decay"])
        named = dict(zip(parameters, updates, strict=True))
        for some in _at_once(parameters):
            self._move(some, named, rate)

    def _move(
        self,
        parameters: dict[str, torch.Tensor],
        updates: dict[str, torch.Tensor],
        rate: float | torch.Tensor,
    ) -> None:
        """Change some parameters by `rate` times their updates, made orthogonal."""
        directed = {name: whole(as_divided(updates[name], one)) for name, one in parameters.items()}
        changed = {
            name: one if local(one) is one else torch.zeros_like(directed[name], dtype=one.dtype)
            for name, one in parameters.items()
        }
        for places, stack in _by_shape(changed, directed):
            directions = world().each_some(stack, self._orthogonal)
            for matrix, direction in zip(places, directions, strict=True):
                rows, columns = matrix.shape
                longest = max(1.0, rows / columns) ** 0.5
                wide = direction if direction.shape == matrix.shape else direction.mT
                matrix.sub_(wide * (rate * longest))
        for name, one in parameters.items():
            if changed[name] is not one:
                local(one).add_(piece(changed[name], one))

    def _orthogonal(self, stack: torch.Tensor) -> torch.Tensor:
        return orthogonalize(stack, self.dtype)


def _at_once(parameters: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The parameters that are changed together: all of them, so that many matrices share a product.

    Of divided ones, those of a shape, and as many as there are ranks, because they are gathered.
    """
    if all(local(one) is one for one in parameters.values()):
        yield parameters
        return
    alike: dict[torch.Size, list[str]] = {}
    for name, one in parameters.items():
        alike.setdefault(one.shape, []).append(name)
    size = world().size
    for names in alike.values():
        for first in range(0, len(names), size):
            yield {name: parameters[name] for name in names[first : first + size]}


def _by_shape(
    parameters: dict[str, torch.Tensor], updates: dict[str, torch.Tensor]
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """All matrices of one shape, tall ones lying down: those to change, and a stack of their updates."""
    found: dict[tuple[int, ...], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for name, parameter in parameters.items():
        for matrix, part in zip(matrices(name, parameter), matrices(name, updates[name]), strict=True):
            wide = part if part.shape[0] <= part.shape[1] else part.mT
            changed, parts = found.setdefault(tuple(wide.shape), ([], []))
            changed.append(matrix)
            parts.append(wide)
    for changed, parts in found.values():
        yield changed, torch.stack(parts)


def matrices(name: str, parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """The matrices in a parameter: each expert's, and those of queries, keys and values, which lie in one."""
    for matrix in parameter.unbind() if parameter.dim() == 3 else [parameter]:
        if name.endswith("c_attn.weight"):
            rows, width = matrix.shape
            yield from matrix.split([width, (rows - width) // 2, (rows - width) // 2])
        else:
            yield matrix


def orthogonalize(stack: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Roughly the nearest orthogonal matrices, by five Newton-Schulz steps.

    (N, rows, columns) with rows ≤ columns -> same shape, in `dtype`.
    """
    x = stack.to(dtype)
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
