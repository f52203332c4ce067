"""Attention by plain products is PyTorch's, with its gradients; dropout leaves out whole weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from pipeline.model import attend as module
from pipeline.model.attend import attend, scores_kept


def heads(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 9, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def with_gradients(attention: Callable[..., torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    q, k, v = inputs = heads(dtype, seed=1)
    y = attention(q, k, v, is_causal=True)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype))
    return [y.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


@pytest.fixture(params=[128, 4], ids=["one-block", "blocks"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_products_are_faster", lambda q, dropout: True)
    monkeypatch.setattr(module, "BLOCK", request.param)


@pytest.mark.usefixtures("products")
def test_it_equals_pytorchs_in_float32() -> None:
    ours = with_gradients(attend, torch.float32)
    theirs = with_gradients(F.scaled_dot_product_attention, torch.float32)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["kernel", "products"])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
def test_groups_of_heads_may_share_keys_and_values(dropout: float, masked: bool) -> None:
    q, k, v = heads(torch.float32, seed=5)
    mask = torch.randn(2, 1, 9, 9) if masked else None
    found, expected = (
        attend(q, *shared, mask, dropout, is_causal=not masked)
        for shared in ((k[:, :1], v[:, :1]), (k[:, [0, 0, 0]], v[:, [0, 0, 0]]))
    )
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("products")
def test_bfloat16_is_as_near_to_float32_as_pytorchs_is() -> None:
    exact = with_gradients(F.scaled_dot_product_attention, torch.float32)
    ours = with_gradients(attend, torch.bfloat16)
    for one, two in zip(ours, exact, strict=True):
        assert (one.float() - two).norm() < 0.02 * two.norm()


@pytest.mark.usefixtures("products")
def test_dropout_keeps_the_mean_and_has_the_gradient_of_what_it_kept() -> None:
    q, k, v = heads(torch.float32, 2)
    torch.manual_seed(3)
    draws = torch.stack([attend(q, k, v, dropout=0.5, is_causal=True).detach() for _ in range(2000)])
    mean = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (draws.mean(0) - mean).abs().max() < 0.2
    assert draws.std(0).max() > 0.1

    def same_draw(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(4)
        return attend(q, k, v, dropout=0.5, is_causal=True)

    inputs = tuple(part.double().detach().requires_grad_() for part in (q, k, v))
    assert torch.autograd.gradcheck(same_draw, inputs)


def test_half_of_a_long_contexts_scores_are_kept() -> None:
    cpu, bfloat16 = torch.device("cpu"), torch.bfloat16
    assert scores_kept(cpu, bfloat16, 100, 0.0) == 100
    assert scores_kept(cpu, bfloat16, 1024, 0.0) == (1024 + 128) / 2
    assert scores_kept(cpu, torch.float32, 100, 0.0) == scores_kept(cpu, bfloat16, 1025, 0.0) == 0
    assert scores_kept(cpu, torch.float32, 100, 0.1) == 100
