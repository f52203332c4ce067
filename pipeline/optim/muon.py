"""Muon: momentum whose update of a matrix is made orthogonal (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

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

    All matrices of one shape are orthogonalized together, in `dtype`. The entries of an update are scaled by
    sqrt(out / in) where a matrix has more rows than columns, so that outputs change alike.
    """

    momentum: float = 0.95
    dtype: torch.dtype = torch.float32

    def __call__(
        self,
        group: dict[str, Any],
        parameters: list[torch.Tensor],
        states: list[State],
        found_inf: torch.Tensor | None,
    ) -> None:
        updates = []
        for parameter, state in zip(parameters, states, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            if found_inf is not None:
                gradient = torch.where(found_inf > 0, state["momentum"], gradient)  # the momentum stays
            state["momentum"].lerp_(gradient, 1 - self.momentum)
            updates.append(gradient.lerp(state["momentum"], self.momentum))
        self._orthogonalize(group["param_names"], updates)
        rate = group["lr"] if found_inf is None else group["lr"] * (found_inf == 0)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.sub_(update * rate)

    def _orthogonalize(self, names: list[str], updates: list[torch.Tensor]) -> None:
        """Replace every matrix in `updates` by its nearest orthogonal one."""
        by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for name, update in zip(names, updates, strict=True):
            for matrix in matrices(name, update):
                wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
                by_shape.setdefault(tuple(wide.shape), []).append(matrix)
        for shape, same in by_shape.items():
            stack = torch.stack([matrix if tuple(matrix.shape) == shape else matrix.mT for matrix in same])
            for matrix, orthogonal in zip(same, orthogonalize(stack, self.dtype), strict=True):
                rows, columns = matrix.shape
                matrix.copy_(orthogonal if tuple(matrix.shape) == shape else orthogonal.mT)
                if rows > columns:
                    matrix *= (rows / columns) ** 0.5


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
