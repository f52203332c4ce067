"""A float32 product through oneDNN is that of `F.linear`, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.model.linear import Linear, linear

SHAPES = [((20, 5, 8), 5), ((100, 8), 1), ((64, 1, 4), 4), ((2, 4), 3), ((0, 4), 3)]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_outputs_and_gradients_are_those_of_double_precision(
    shape: tuple[int, ...], out: int, bias: bool
) -> None:
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        inputs = [random(*shape, dtype=dtype), random(out, shape[-1], dtype=dtype)]
        inputs += [random(out, dtype=dtype)] if bias else []
        y = function(*inputs)
        y.backward(random(*y.shape, dtype=dtype).detach())
        results.append([y.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_strided_inputs_need_no_copy_by_the_caller() -> None:
    x, weight = random(80, 6).detach(), random(6, 5).detach()
    torch.testing.assert_close(linear(x[:, ::2], weight.t()[:, ::2]), x[:, ::2] @ weight.t()[:, ::2].t())


def test_autocast_decides_the_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(4, 4)(torch.ones(2, 4)).dtype == torch.bfloat16
    assert Linear(4, 4)(torch.ones(2, 4)).dtype == torch.float32


def test_only_the_gradients_that_are_needed() -> None:
    x, weight = random(70, 4).detach(), random(3, 4)
    linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None
