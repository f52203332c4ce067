"""RMSNorm is PyTorch's, with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.model.norm import RMSNorm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_it_equals_pytorchs(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(3, 5, 2, 8, generator=generator).transpose(1, 2)
    gradient = torch.randn(data.shape, generator=generator)
    norm = RMSNorm(8, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    x = data.to(dtype, copy=True).requires_grad_()
    y = norm(x)
    y.backward(gradient.to(dtype))
    exact = data.double().requires_grad_()
    weight = norm.weight.detach().double().requires_grad_()
    expected = F.rms_norm(exact, (8,), weight, 1e-5)
    expected.backward(gradient.double())
    assert y.dtype == dtype and norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32
    for ours, theirs in ((y, expected), (x.grad, exact.grad), (norm.weight.grad, weight.grad)):
        assert ours is not None and theirs is not None
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


def test_gradients_are_those_of_its_outputs() -> None:
    norm = RMSNorm(6, eps=1e-5).double()
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(norm, (x.requires_grad_(),))
