"""How fast this machine computes the matrix products that a model needs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# By the name that PyTorch's dispatcher has for them. The factors are the last two tensors of the first
# arguments: (…, M, K) and (…, K, N), or (N, K) for oneDNN's.
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_grouped_mm": 0, "_linear_pointwise": 0}
SECONDS = 0.1  # of measuring each product


@dataclass(frozen=True)
class Product:
    """One matrix product: the operator, and its arguments without their values."""

    operator: Any = field(compare=False)
    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    arguments: tuple[Any, ...] = field(compare=False)

    @property
    def flops(self) -> int:
        """2 M K N for every matrix of a batch; for groups, M (or K) is the sum over the groups."""
        *batch, rows, inner = self.shapes[0]
        columns = self.shapes[1][0] if self.name == "_linear_pointwise" else self.shapes[1][-1]
        flops = 2 * rows * inner * columns
        for size in batch:
            flops *= size
        return flops

    def seconds(self, wait: Callable[[], None]) -> float:
        """The least time of many, because other programs run too."""
        arguments = tuple(_like(argument) for argument in self.arguments)
        seconds: list[float] = []
        until = time.perf_counter() + SECONDS
        with torch.no_grad():
            while len(seconds) < 3 or time.perf_counter() < until:
                start = time.perf_counter()
                self.operator(*arguments)
                wait()
                seconds.append(time.perf_counter() - start)
        return min(seconds)


class Recorder(TorchDispatchMode):
    """Counts the matrix products that run within it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in PRODUCTS and not kwargs:
            factors = [argument for argument in args if isinstance(argument, torch.Tensor)]
            one, other = factors[PRODUCTS[name] : PRODUCTS[name] + 2]
            shapes = (tuple(one.shape), tuple(other.shape))
            self.products[Product(func, name, shapes, one.dtype, tuple(map(_kept, args)))] += 1
        return func(*args, **(kwargs or {}))


def matrix_rate(products: Counter[Product], wait: Callable[[], None]) -> float:
    """FLOP/s of the products, each alone and as often as it was counted; 0.0 without any."""
    flops = sum(product.flops * number for product, number in products.items())
    seconds = sum(product.seconds(wait) * number for product, number in products.items())
    return flops / seconds if seconds else 0.0


@dataclass(frozen=True)
class _Blank:
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _kept(argument: Any) -> Any:
    """What `_like` needs to make such an argument again. Whole numbers, as of groups, stay as they are."""
    if isinstance(argument, torch.Tensor) and argument.is_floating_point():
        return _Blank(tuple(argument.shape), argument.stride(), argument.dtype, argument.device)
    return argument.clone() if isinstance(argument, torch.Tensor) else argument


def _like(argument: Any) -> Any:
    if not isinstance(argument, _Blank):
        return argument
    last = sum((size - 1) * stride for size, stride in zip(argument.size, argument.stride, strict=True))
    values = torch.randn(max(0, last) + 1, device=argument.device).to(argument.dtype)
    return values.as_strided(argument.size, argument.stride)
