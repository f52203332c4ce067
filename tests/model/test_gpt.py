"""The model is GPT-2 as nanoGPT defines it, decodes from a cache as it reads, and shows every depth."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.model import GPTConfig
from pipeline.model.attend import attend
from pipeline.model.build import build_gpt, padded_vocab_size
from pipeline.model.cache import KVCache
from pipeline.model.context import Context
from pipeline.model.gpt import GPT, Embedding, cross_entropy
from tests import tiny

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def hugging_face_twin(model: GPT, n_head: int) -> nn.Module:
    """Hugging Face's GPT-2 with the same weights; its Conv1D layers store theirs transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.embed.wte.num_embeddings,
            n_positions=model.block_size,
            n_embd=model.embed.wte.embedding_dim,
            n_layer=model.depth,
            n_head=n_head,
            activation_function="gelu",
        )
    ).eval()
    state = {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        projection = rest.endswith("weight") and value.dim() == 2 and part == "trunk"
        state[f"transformer.{rest}"] = value.T if projection else value
    state["lm_head.weight"] = model.embed.wte.weight
    twin.load_state_dict(state)
    return twin


def test_logits_equal_hugging_faces_gpt2() -> None:
    model = tiny.model(n_head=4)
    with torch.no_grad():
        torch.testing.assert_close(
            model(IDS), hugging_face_twin(model, n_head=4)(IDS).logits, atol=1e-5, rtol=0
        )


def test_loss_equals_hugging_faces() -> None:
    model = tiny.model()
    theirs = hugging_face_twin(model, n_head=2)(IDS, labels=IDS).loss
    torch.testing.assert_close(model(IDS[:, :-1], targets=IDS[:, 1:]).total, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "total", "without_positions"),
    [
        # GPT-2 small has 124,439,808 parameters; padding 50,257 tokens to 50,304 adds 47 rows of 768
        (
            {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304},
            124_439_808 + 47 * 768,
            124_439_808 + 47 * 768 - 1024 * 768,
        ),
        # the CPU configuration of nanoGPT's README, which prints "number of parameters: 0.80M"
        (
            {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 65, "bias": False},
            804_096,
            795_904,
        ),
    ],
)
def test_parameters_are_counted_as_nanogpt_counts(
    config: dict[str, Any], total: int, without_positions: int
) -> None:
    with torch.device("meta"):
        model = build_gpt(tiny.config(**config))
    assert model.num_params() == total
    assert model.num_params(positions=False) == without_positions


@pytest.mark.parametrize(("size", "padded"), [(65, 65), (2048, 2048), (50257, 50304), (50304, 50304)])
def test_only_large_vocabularies_are_padded(size: int, padded: int) -> None:
    assert padded_vocab_size(size) == padded


@pytest.mark.parametrize("position", range(8))
def test_a_token_changes_no_logit_before_it(position: int) -> None:
    model = tiny.model()
    changed = IDS.clone()
    changed[:, position] = (changed[:, position] + 1) % 11
    with torch.no_grad():
        before, after = model(IDS), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.isclose(before[:, position:], after[:, position:]).all(-1).any()


def test_initialization_is_gpt2s() -> None:
    torch.manual_seed(0)
    n_layer = 8
    model = build_gpt(tiny.config(n_layer=n_layer, n_embd=128, n_head=4, block_size=64, vocab_size=256))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln_" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(parameter.mean().item()) < 4 * std / math.sqrt(parameter.numel()), name


def test_a_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    model = build_gpt(tiny.config(vocab_size=1000))
    ids, targets = torch.randint(1000, (2, 64, 8))
    assert model(ids, targets=targets).total.item() == pytest.approx(math.log(1000), abs=0.02)


def test_bias_switch_removes_every_bias() -> None:
    names = [name for name, _ in tiny.model(bias=False).named_parameters()]
    assert names
    assert not [name for name in names if "bias" in name]
    with_biases = {name for name, _ in tiny.model(bias=True).named_parameters()}
    assert {name.removesuffix("weight") for name in names if "wte" not in name and "wpe" not in name} == {
        name.removesuffix("bias") for name in with_biases if name.endswith("bias")
    }


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny.model()
    model(IDS, targets=IDS.roll(-1, 1)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_tied_head_trains_the_embedding_from_both_ends() -> None:
    model = tiny.model()
    ids, targets = torch.tensor([[1, 2]]), torch.tensor([[2, 3]])
    model(ids, targets=targets).total.backward()
    both = model.embed.wte.weight.grad
    assert both is not None
    assert both[10].any()  # read by no position, but among the logits
    with torch.no_grad():
        hidden = model.head.ln_f(model.trunk(model.embed(ids, Context()), Context()))
        d_logits = (model(ids).softmax(-1) - nn.functional.one_hot(targets, 11)) / 2
        from_head = torch.einsum("btv,btc->vc", d_logits, hidden)
    from_below = both - from_head
    assert from_below[[1, 2]].abs().min() > 1e-6
    torch.testing.assert_close(from_below[3:], torch.zeros(8, 16), atol=1e-6, rtol=0)


def test_tied_matrix_is_one_parameter() -> None:
    model = tiny.model()
    assert [name for name in model.state_dict() if "wte" in name or "lm_head" in name] == ["embed.wte.weight"]


def test_dropout_is_active_in_training_only() -> None:
    model = tiny.model(dropout=0.5)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), tiny.model(dropout=0.0)(IDS), atol=0, rtol=0)
        model.train()
        torch.manual_seed(1)
        first, second = model(IDS), model(IDS)
        torch.manual_seed(1)
        again = model(IDS)
    assert not torch.isclose(first, second).all()
    assert torch.equal(first, again)


def test_dropout_is_everywhere_that_gpt2_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(args[4])
        return attend(*args, **kwargs)

    monkeypatch.setattr("pipeline.model.attention.attend", spy)
    model = tiny.model(dropout=0.3).train()
    model(IDS)
    assert seen == [0.3] * 3  # on the attention weights of each layer
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in modules] == [0.3] * 7  # embedding, and two residual writes in each layer


def test_depth_curve_ends_at_the_model_itself() -> None:
    model = tiny.model()
    with torch.no_grad():
        by_depth = list(model.logits_by_depth(IDS))
        assert len(by_depth) == model.depth == 3
        assert torch.equal(by_depth[-1], model(IDS))
        shallow = build_gpt(tiny.config(n_layer=1)).eval()
        shallow.load_state_dict(
            {name: value for name, value in model.state_dict().items() if name in shallow.state_dict()}
        )
        assert torch.equal(by_depth[0], shallow(IDS))


@pytest.mark.parametrize("chunks", [[8], [3, 5], [1] * 8, [4, 1, 1, 2], [7, 1]])
def test_decoding_in_chunks_equals_reading_at_once(chunks: list[int]) -> None:
    model = tiny.model()
    cache = KVCache(model.block_size, batch=2)
    with torch.no_grad():
        parts = [model(part, cache) for part in IDS.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(IDS), atol=1e-5, rtol=0)
    assert cache.length == 8


def test_next_logits_are_those_of_the_last_position() -> None:
    model = tiny.model()
    cache = KVCache(model.block_size, batch=2)
    with torch.no_grad():
        model.next_logits(IDS[:, :5], cache)
        last = model(IDS)[:, -1]
        torch.testing.assert_close(model.next_logits(IDS[:, 5:], cache), last, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.next_logits(IDS), last, atol=1e-5, rtol=0)


def test_a_window_longer_than_block_size_is_a_programming_error() -> None:
    model = tiny.model()
    with pytest.raises(AssertionError, match="block_size is 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    cache = KVCache(model.block_size, batch=2)
    model(IDS, cache)
    with pytest.raises(AssertionError, match="cache is full"):
        model(IDS[:, :1], cache)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    targets = torch.tensor([[0, 1]])
    assert cross_entropy(logits, targets).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert cross_entropy(logits, targets, "sum").item() == pytest.approx(math.log(2) + math.log(4))


def test_config_keeps_the_checks_of_the_parameters() -> None:
    with pytest.raises(ValueError, match="not divisible"):
        GPTConfig(**{**tiny.config().model_dump(), "n_head": 3})


def test_positions_start_where_the_cache_ends() -> None:
    wpe = nn.Embedding(6, 2)
    embed = Embedding(nn.Embedding(4, 2), wpe, dropout=0.0)
    cache = KVCache(block_size=6, batch=1)
    cache.advance(3)
    ids = torch.zeros(1, 2, dtype=torch.long)
    cache.begin(2, ids.device)
    torch.testing.assert_close(
        embed(ids, Context(cache))[0], embed.wte.weight[0] + wpe.weight[3:5], atol=0, rtol=0
    )
