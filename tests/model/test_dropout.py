"""Dropout leaves out the share it is asked for, keeps the mean, and draws the same with the same seed."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_and_scale(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    y = dropout(torch.ones(501, 401, dtype=dtype), p)  # a number of values that four does not divide
    zero = (y == 0).double().mean().item()
    assert abs(zero - p) < 4 * (p * (1 - p) / y.numel()) ** 0.5 + 1 / (1 << 16)
    torch.testing.assert_close(
        y[y != 0].unique(), torch.tensor([1 / (1 - p)], dtype=dtype), rtol=1e-4, atol=0
    )


def test_values_are_left_out_independently() -> None:
    torch.manual_seed(2)
    left_out = (dropout(torch.ones(1 << 18), 0.3) == 0).double() - 0.3
    for distance in range(1, 9):  # also of those whose draws are one
        correlation = (left_out[distance:] * left_out[:-distance]).mean() / (0.3 * 0.7)
        assert abs(correlation) < 5 / (1 << 9)


def test_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(3)
    x = torch.randn(7, 5, 3).requires_grad_()
    y = dropout(x, 0.4)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y / x).detach())


def test_equal_seeds_give_equal_draws() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(10, 10), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_nothing_is_left_out_in_evaluation_or_without_a_probability() -> None:
    x = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert Dropout(1 - 1e-9).train()(x).isfinite().all()
