"""Clipping a gradient gives what PyTorch's function gives, to the bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, get_total_norm

from pipeline.train.loop import _clip_gradient
from tests import tiny


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("poison", [None, math.nan, math.inf])
def test_it_is_pytorchs(limit: float, poison: float | None) -> None:
    model = tiny.model()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if poison is not None:
        gradient = next(model.parameters()).grad
        assert gradient is not None
        gradient[0] = poison
    other = copy.deepcopy(model)
    for own, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert theirs.grad is not None
        own.grad = theirs.grad.clone()
    norms = _clip_gradient(model, limit), clip_grad_norm_(other.parameters(), limit)
    torch.testing.assert_close(*norms, rtol=0, atol=0, equal_nan=True)
    for own, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=0, atol=0, equal_nan=True)


def test_without_a_limit_the_gradient_stays() -> None:
    model = tiny.model()
    before = [torch.randn_like(parameter) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        parameter.grad = gradient.clone()
    assert _clip_gradient(model, math.inf) == get_total_norm(before)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)
