"""Rotary positions and ALiBi, against their papers and Hugging Face's Llama."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.model.position import ALiBi, Rotary, slopes
from tests import tiny


def test_rotary_by_hand() -> None:
    """Four channels at position 2: pairs (0, 2) and (1, 3) turn by 2 and by 2 / 100."""
    x = torch.zeros(1, 1, 3, 4)
    x[0, 0, 2] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    turned = Rotary(head_size=4, block_size=3)(x, slice(3))[0, 0, 2]
    expected = torch.tensor([math.cos(2), -math.sin(0.02), math.sin(2), math.cos(0.02)])
    torch.testing.assert_close(turned, expected)


def test_rotary_is_hugging_faces_llama() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 10, 8), torch.randn(2, 4, 10, 8)
    theirs = LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=4))
    positions = torch.arange(3, 13)[None]
    their_q, their_k = apply_rotary_pos_emb(q, k, *theirs(q, positions))
    ours = Rotary(head_size=8, block_size=13)
    for at in (slice(3, 13), positions[0]):
        torch.testing.assert_close(ours(q, at), their_q)
        torch.testing.assert_close(ours(k, at), their_k)


def test_rotary_scores_depend_on_distances_only() -> None:
    torch.manual_seed(0)
    rotary = Rotary(head_size=16, block_size=64)
    q, k = torch.randn(16), torch.randn(16)
    at_each = [rotary(part.expand(1, 1, 64, 16), slice(64))[0, 0] for part in (q, k)]
    scores = at_each[0] @ at_each[1].T
    for distance in (0, 1, 17, -5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert not torch.isclose(scores[0, 0], scores[0, 1])


def test_rotary_keeps_lengths_and_the_first_position() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 8)
    turned = Rotary(head_size=8, block_size=32)(x, slice(32))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert Rotary(8, 32)(x.bfloat16(), slice(32)).dtype == torch.bfloat16


def test_alibi_slopes_of_the_paper() -> None:
    assert slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert slopes(16)[:4] == pytest.approx([2**-0.5, 1 / 2, 2**-1.5, 1 / 4])
    # For 12 heads: those of 8, then every other one of 16, as in the authors' code.
    assert slopes(12) == pytest.approx([*slopes(8), *slopes(16)[::2][:4]])


@pytest.mark.parametrize("n_head", [1, 2, 3, 6, 8, 12, 20, 25])
def test_alibi_slopes_are_hugging_faces_blooms(n_head: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)  # slope times position
    assert slopes(n_head) == pytest.approx(theirs[:, 0, 1].tolist())


def bias(alibi: ALiBi, queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(keys)
    ages = positions[keys - queries :, None] - positions
    return alibi(ages, (ages >= 0)[None, None], like)[0]


def test_alibi_bias_by_hand() -> None:
    found = bias(ALiBi(n_head=2), 3, 3, like=torch.zeros(()))  # slopes 1/16 and 1/256
    never = -math.inf
    by_hand = torch.tensor([[0, never, never], [-1, 0, never], [-2, -1, 0]])
    torch.testing.assert_close(found, torch.stack([by_hand / 16, by_hand / 256]))


def test_alibi_has_the_dtype_of_the_scores() -> None:
    assert bias(ALiBi(n_head=4), 6, 6, like=torch.zeros((), dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_turning_back_is_being_at_a_lower_position() -> None:
    torch.manual_seed(0)
    rotary = Rotary(head_size=8, block_size=32)
    x = torch.randn(2, 3, 20, 8)
    back = rotary.turn_back(rotary(x, slice(40, 60)), 32)
    torch.testing.assert_close(back, rotary(x, slice(8, 28)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
@torch.no_grad()
def test_order_reaches_the_model_through_attention_alone(position: str) -> None:
    """Without position embeddings, and with the part taken out, attention sees a set of tokens."""
    model = tiny.model(position=position, n_layer=1)
    assert model.embed.wpe is None
    ids, swapped = torch.tensor([[3, 1, 4, 5]]), torch.tensor([[1, 4, 3, 5]])
    assert not torch.isclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-4).all()
    setattr(model.trunk.h[0].attn, position, None)  # type: ignore[union-attr, index]
    torch.testing.assert_close(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-5, rtol=0)
