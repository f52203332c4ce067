"""Every variant is causal, reloads, learns, decodes from a cache, compiles, and resumes to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pipeline.model.build import build_gpt
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.model.load import load_model
from pipeline.optim.build import build_optimizer
from pipeline.runtime.compiled import compiled
from pipeline.serve.sampling import Reader, TokenSampler, generate
from pipeline.weights.model_folder import save_config, save_weights
from tests import tiny
from tests.family import VARIANTS
from tests.train.runs import Runs, outcome, stopped_at_each

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7, 1, 8, 2, 8, 1, 8]])
TARGETS = IDS.roll(-1, 1)

each = pytest.mark.parametrize("name", VARIANTS)


def model_of(name: str) -> GPT:
    return tiny.model(**VARIANTS[name])


@each
@torch.no_grad()
def test_a_token_changes_no_logit_before_it(name: str) -> None:
    model = model_of(name)
    for position in range(IDS.shape[1]):
        changed = IDS.clone()
        changed[:, position] = (changed[:, position] + 1) % 11
        before, after = model(IDS), model(changed)
        torch.testing.assert_close(before[:, :position], after[:, :position], atol=1e-6, rtol=0)
        assert not torch.isclose(before[:, position], after[:, position]).all(-1).any()


@each
@torch.no_grad()
def test_a_saved_model_reloads_exactly(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    save_weights(model.state_dict(), tmp_path)
    save_config(tiny.config(**VARIANTS[name]), tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(IDS), model(IDS))
    assert {key: value.dtype for key, value in loaded.state_dict().items()} == {
        key: value.dtype for key, value in model.state_dict().items()
    }


@each
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = model_of(name).train()
    torch.manual_seed(0)
    for _ in range(8):  # dropout may leave a block out once, and an expert may have no token
        model(IDS, targets=TARGETS, depth=3 if model.depth_distribution else None).total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@each
@torch.no_grad()
def test_decoding_with_the_cache_equals_decoding_without(name: str) -> None:
    """Greedily, three sequences at once; and logits of chunks of every size."""
    model = model_of(name)
    tokens = 10 if model.embed.wpe else 6  # beyond the window only if it is read anew
    cached = torch.stack(list(generate(model, IDS[:, :3], tokens, TokenSampler(greedy=True), 11)), dim=1)
    ids = IDS[:, :3]
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids[:, -8:])[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, ids[:, 3:])
    for chunks in ([3, 5], [1] * 8, [4, 1, 1, 2]):
        cache = KVCache(model.block_size, batch=3)
        parts = [model(part, cache) for part in IDS.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(IDS), atol=1e-5, rtol=0)
        assert cache.length == 8


PROMPTS = [IDS[0, :1], IDS[1, :3], IDS[2], torch.cat([IDS[0], IDS[1, :4]])]  # the last exceeds the window
NEW = torch.randint(11, (4, 20), generator=torch.Generator().manual_seed(0))  # past two windows


@each
@torch.no_grad()
def test_prompts_of_different_lengths_are_read_as_if_alone(name: str) -> None:
    model = model_of(name)
    together = logits_of(model, PROMPTS, NEW)
    for row, prompt in enumerate(PROMPTS):
        alone = logits_of(model, [prompt], NEW[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], atol=2e-5, rtol=0)


@each
@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS[:2], PROMPTS[1:2]], ids=["padded", "one"])
def test_fixed_shapes_change_no_logit(name: str, prompts: list[torch.Tensor]) -> None:
    """What a CUDA graph captures, without the capture; as far as the cache reaches."""
    model = model_of(name)
    tokens = NEW[: len(prompts), : 20 if model.slides else 5]
    free, fixed = (Reader(model, prompts, tokens.shape[1], None) for _ in range(2))
    torch.testing.assert_close(fixed.start(), free.start(), atol=0, rtol=0)
    fixed.cache.fix_shapes()
    for token in tokens.T:
        torch.testing.assert_close(fixed.next(token), free.next(token), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", [name for name in VARIANTS if VARIANTS[name].get("position", "learned") != "learned"]
)
@torch.no_grad()
def test_a_cache_that_slides_equals_attention_to_the_last_positions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the whole text, of a model with the same weights and a longer window, through a band."""
    found = logits_of(model_of(name), PROMPTS, NEW)
    attention = functional.scaled_dot_product_attention

    def banded(q: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        T = q.shape[2]
        band = torch.ones(T, T, dtype=torch.bool).tril().triu(-7).log()
        mask = band if settings["attn_mask"] is None else band + settings["attn_mask"]
        return attention(q, *args, **{**settings, "attn_mask": mask, "is_causal": False})

    monkeypatch.setattr(functional, "scaled_dot_product_attention", banded)
    longer = tiny.model(**VARIANTS[name], block_size=64)
    for row, prompt in enumerate(PROMPTS):
        text = torch.cat([prompt[-8:], NEW[row]])[None]
        whole = longer(text)[0, min(len(prompt), 8) - 1 :]
        torch.testing.assert_close(found[row], whole, atol=2e-5, rtol=0)


def logits_of(model: GPT, prompts: list[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The logits (B, 1 + T, vocabulary) after the prompts and after each of the tokens (B, T)."""
    reader = Reader(model, prompts, tokens.shape[1], None)
    logits = [reader.start()]
    logits += [reader.next(token).clone() for token in tokens.T]  # a CUDA graph writes into the same tensor
    return torch.stack(logits, dim=1)


@each
@torch.no_grad()
def test_a_sequence_is_read_alike_in_any_company(name: str) -> None:
    model = model_of(name)
    together = model(IDS)
    for row in range(3):
        torch.testing.assert_close(model(IDS[row : row + 1])[0], together[row], atol=1e-5, rtol=0)


@each
def test_compiling_changes_no_loss(name: str) -> None:
    torch.compiler.reset()
    losses, gradients = [], []
    for backend in (None, "aot_eager"):
        model = model_of(name).train()
        loss = model if backend is None else compiled(model, backend)
        torch.manual_seed(1)
        for depth in (2, 3) if model.depth_distribution else (None, None):
            result = loss(IDS, targets=TARGETS, depth=depth)
            result.total.backward()
            losses.append(result)
        gradients.append(model.embed.wte.weight.grad)
    for one, other in zip(losses[:2], losses[2:], strict=True):
        torch.testing.assert_close(other.total, one.total, atol=1e-5, rtol=0)
        assert other.figures.keys() == one.figures.keys()
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


@each
def test_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = build_gpt(tiny.config(**VARIANTS[name]))
    optimizer = build_optimizer(model, tiny.params("train.learning_rate=0.01").train)
    with torch.no_grad():
        before = model.eval()(IDS, targets=TARGETS).cross_entropy
    model.train()
    for step in range(50):
        depth = 1 + step % 4 if model.depth_distribution else None
        model(IDS, targets=TARGETS, depth=depth).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    with torch.no_grad():
        after = model.eval()(IDS, targets=TARGETS).cross_entropy
    assert after < before - 0.3


@each
def test_resuming_equals_not_stopping(name: str, runs: Runs) -> None:
    switches = [f"model.{key}={str(value).lower()}" for key, value in VARIANTS[name].items()]
    short = [*switches, "train.max_iters=8", "train.eval_interval=4", "model.dropout=0.1"]
    uninterrupted = runs.elsewhere("uninterrupted")(*short)
    stopped = stopped_at_each(runs, [1, 3, 6], *short)
    assert outcome(stopped) == outcome(uninterrupted)
