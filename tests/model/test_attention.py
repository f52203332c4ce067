"""Attention and its slots: grouped queries, normed queries and keys, value embeddings; and the softcap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.attention import CausalSelfAttention, ValueMix
from pipeline.model.context import Context
from pipeline.model.gpt import Softcap
from tests import tiny


def attention(**slots: object) -> CausalSelfAttention:
    """4 heads of 3 channels, each parameter random."""
    torch.manual_seed(0)
    part = CausalSelfAttention(12, 4, bias=True, dropout=0.0, **slots)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.5)
    return part


@torch.no_grad()
def by_loops(part: CausalSelfAttention, x: torch.Tensor) -> torch.Tensor:
    """Softmax attention as the formula says, one query of one head at a time."""
    q, k, v = part.c_attn(x).split([12, part.n_kv_head * 3, part.n_kv_head * 3], dim=-1)
    y = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for head in range(4):
            own = slice(3 * head, 3 * head + 3)
            group = head // (4 // part.n_kv_head)
            shared = slice(3 * group, 3 * group + 3)
            for t in range(x.shape[1]):
                scores = (k[row, : t + 1, shared] @ q[row, t, own]) / math.sqrt(3)
                y[row, t, own] = scores.softmax(0) @ v[row, : t + 1, shared]
    return F.linear(y, part.c_proj.weight, part.c_proj.bias)


@pytest.mark.parametrize("n_kv_head", [None, 4, 2, 1])
@torch.no_grad()
def test_attention_is_the_formula(n_kv_head: int | None) -> None:
    part = attention(n_kv_head=n_kv_head)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(part(x, Context(), 0), by_loops(part, x))


@torch.no_grad()
def test_grouped_queries_are_full_attention_with_heads_repeated() -> None:
    grouped, full = attention(n_kv_head=2), attention()
    x = torch.randn(2, 5, 12)
    for name in ("weight", "bias"):
        q, k, v = getattr(grouped.c_attn, name).split([12, 6, 6])
        repeated = [part.unflatten(0, (2, 3)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v)]
        getattr(full.c_attn, name).copy_(torch.cat([q, *repeated]))
    full.c_proj.load_state_dict(grouped.c_proj.state_dict())
    torch.testing.assert_close(grouped(x, Context(), 0), full(x, Context(), 0))


@torch.no_grad()
def test_normed_queries_and_keys_bound_the_scores() -> None:
    """However large queries and keys become, attention stays as it is."""
    part = attention(q_norm=nn.RMSNorm(3), k_norm=nn.RMSNorm(3))
    for norm in (part.q_norm, part.k_norm):
        nn.init.ones_(norm.weight)  # type: ignore[union-attr, arg-type]
    x = torch.randn(2, 5, 12)
    before = part(x, Context(), 0)
    q, k, _ = part._heads(x, Context())
    for heads in (q, k):
        torch.testing.assert_close(heads.square().mean(-1), torch.ones(2, 4, 5), atol=1e-4, rtol=0)
    part.c_attn.weight[:24] *= 100
    part.c_attn.bias[:24] *= 100
    torch.testing.assert_close(part(x, Context(), 0), before)


@torch.no_grad()
def test_value_embeddings_are_added_to_the_values() -> None:
    part, plain = attention(value_mix=ValueMix()), attention()
    plain.load_state_dict({name: value for name, value in part.state_dict().items() if "mix" not in name})
    mix = part.value_mix
    assert mix is not None
    mix.weight.fill_(0.5)
    x, embedding = torch.randn(2, 1, 12), torch.randn(2, 1, 12)
    # One token attends to itself alone, so half the embedding goes straight to the projection.
    added = part(x, Context(value_embedding=embedding), 0) - plain(x, Context(), 0)
    torch.testing.assert_close(added, 0.5 * embedding @ part.c_proj.weight.T, atol=1e-5, rtol=0)


def test_a_value_embedding_is_that_of_its_token_in_every_layer() -> None:
    model = tiny.model(value_embeddings=True)
    model(torch.tensor([[1, 2]]), targets=torch.tensor([[2, 3]])).total.backward()
    assert model.embed.vte is not None
    gradient = model.embed.vte.weight.grad
    assert gradient is not None
    assert gradient.any(dim=1).nonzero()[:, 0].tolist() == [1, 2]
    assert all(model.get_parameter(f"trunk.h.{layer}.attn.value_mix.weight").grad for layer in range(3))


def test_softcap_keeps_logits_within_its_bounds_and_small_ones_as_they_are() -> None:
    cap = Softcap(15.0)
    assert cap(torch.tensor([1e4, -1e4])).tolist() == [15.0, -15.0]
    assert cap(torch.tensor(15.0)).item() == pytest.approx(15 * math.tanh(1))
    torch.testing.assert_close(cap(torch.tensor([0.01, -0.02])), torch.tensor([0.01, -0.02]))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        plain, capped = tiny.model()(ids), tiny.model(logit_softcap=0.5)(ids)
    torch.testing.assert_close(capped, 0.5 * torch.tanh(plain / 0.5))
