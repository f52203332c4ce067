"""Decoding draws from the distribution it says it does, and the cache changes nothing but the time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.errors import UserError
from pipeline.model.gpt import GPT
from pipeline.serve.sampling import TextStream, TokenSampler, generate
from pipeline.tokens.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from pipeline.weights.model_folder import save_config, save_weights
from tests import tiny
from tests.conftest import Ended
from tests.family import RECURRENT, SHARED

VOCAB_SIZE = 11
PROMPT = torch.tensor([[3, 1, 4]])


def decode(model: GPT, prompt: torch.Tensor, tokens: int, sampler: TokenSampler) -> torch.Tensor:
    return torch.stack(list(generate(model, prompt, tokens, sampler, VOCAB_SIZE)), dim=1)


def sampler(seed: int = 0, **settings: Any) -> TokenSampler:
    return TokenSampler(generator=torch.Generator().manual_seed(seed), **settings)


@torch.no_grad()
def decode_without_cache(model: GPT, prompt: torch.Tensor, tokens: int, draw: TokenSampler) -> torch.Tensor:
    """nanoGPT's loop: every token reads the whole window anew."""
    ids = prompt
    for _ in range(tokens):
        logits = model(ids[:, -model.block_size :])[:, -1, :VOCAB_SIZE]
        ids = torch.cat([ids, draw(logits)[:, None]], dim=1)
    return ids[:, prompt.shape[1] :]


@pytest.mark.parametrize("length", [1, 3, 7, 8, 9, 20])
@pytest.mark.parametrize("greedy", [True, False])
def test_decoding_with_the_cache_equals_decoding_without(length: int, greedy: bool) -> None:
    """Prompts shorter than, as long as and longer than the window of 8, decoded far beyond it."""
    torch.manual_seed(1)
    model = tiny.model()
    prompt = torch.randint(VOCAB_SIZE, (3, length))
    found = decode(model, prompt, 24, sampler(greedy=greedy))
    assert torch.equal(found, decode_without_cache(model, prompt, 24, sampler(greedy=greedy)))
    assert len(found.unique()) > (1 if greedy else 6), "a model that repeats itself shows nothing"


@torch.no_grad()
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_damaged_model_gets_one_line(greedy: bool, value: float) -> None:
    model = tiny.model()
    model.head.ln_f.get_parameter("weight")[0] = value
    with pytest.raises(UserError, match="^the model's logits are not numbers; its weights are damaged or it"):
        decode(model, PROMPT, 1, sampler(greedy=greedy))


def test_same_seed_same_text() -> None:
    model = tiny.model()
    prompt = PROMPT.expand(4, -1)
    first = decode(model, prompt, 20, sampler(seed=1))
    assert torch.equal(decode(model, prompt, 20, sampler(seed=1)), first)
    assert not torch.equal(decode(model, prompt, 20, sampler(seed=2)), first)
    assert len(first.unique(dim=0)) == 4, "samples of one batch differ"


def test_global_random_state_is_neither_used_nor_changed() -> None:
    model = tiny.model()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = decode(model, PROMPT, 20, sampler())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(decode(model, PROMPT, 20, sampler()), first)


def test_a_batch_decodes_its_rows_as_if_alone() -> None:
    model = tiny.model()
    prompts = torch.tensor([[3, 1, 4], [0, 0, 7], [9, 9, 9]])
    greedy = TokenSampler(greedy=True)
    alone = torch.cat([decode(model, row[None], 12, greedy) for row in prompts])
    assert torch.equal(decode(model, prompts, 12, greedy), alone)


@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"temperature": 1e-6}, {"temperature": 1e-40}, {"top_p": 1e-9}]
)
def test_limits_are_greedy(settings: dict[str, Any]) -> None:
    model = tiny.model()
    greedy = decode(model, PROMPT, 20, TokenSampler(greedy=True))
    assert torch.equal(decode(model, PROMPT, 20, sampler(**settings)), greedy)


PROBABILITIES = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 4}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 200}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),  # 0.4 is not enough, 0.4 + 0.3 is
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),  # of 0.44, 0.33, 0.22
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        ({"temperature": 0.5, "top_k": 2}, [0, 16 / 25, 0, 9 / 25]),
        ({"temperature": 1e6}, [0.25, 0.25, 0.25, 0.25]),
        ({"temperature": 1e-6}, [0, 1, 0, 0]),
    ],
)
def test_distributions_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    found = sampler(**settings).probabilities(PROBABILITIES.log() + 3.0)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32), atol=1e-5, rtol=0)


def test_rows_are_cut_each_at_its_own_place() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]).log()
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    for settings in ({"top_k": 2}, {"top_p": 0.7}):
        torch.testing.assert_close(sampler(**settings).probabilities(logits), expected)


def test_draws_follow_the_distribution() -> None:
    draws = sampler()(PROBABILITIES.log().expand(40_000, -1))
    frequencies = draws.bincount(minlength=4) / 40_000
    torch.testing.assert_close(frequencies, PROBABILITIES[0], atol=4 * math.sqrt(0.25 / 40_000), rtol=0)


def test_padding_ids_are_never_drawn() -> None:
    model = tiny.model(vocab_size=64)
    drawn = decode(model, torch.zeros(50, 1, dtype=torch.long), 20, sampler(temperature=100.0))
    assert drawn.unique().tolist() == list(range(VOCAB_SIZE))
    with torch.no_grad():
        model.embed.wte.weight[VOCAB_SIZE:] *= 100
    assert decode(model, PROMPT, 20, TokenSampler(greedy=True)).max() < VOCAB_SIZE


def test_no_more_is_computed_than_asked_for() -> None:
    model = tiny.model()
    calls: dict[nn.Module, list[int]] = {}
    blocks = model.trunk.blocks()
    for part in (blocks[0], blocks[-1].get_submodule("mlp"), model.head):
        part.register_forward_hook(
            lambda module, args, output: calls.setdefault(module, []).append(args[0].shape[-2])
        )
    decode(model, PROMPT, 8, TokenSampler(greedy=True))
    positions, of_the_last_layer, _ = calls.values()
    assert positions == [3, 1, 1, 1, 1, 1, 8, 8], "beyond the window of 8, all positions are learned anew"
    assert of_the_last_layer == [1] * 8


TEXT = "né 漢字 🙂!"


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(end_of_text=True), CharTokenizer(TEXT, end_of_text=True)]
)
def test_a_stream_never_cuts_a_character(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.feed(int(token)) for token in tokenizer.encode(TEXT)]
    assert not [piece for piece in pieces if "\ufffd" in piece]
    assert "".join(pieces) + stream.finish() == TEXT


def test_a_stream_replaces_what_never_becomes_a_character() -> None:
    stream = TextStream(ByteTokenizer(end_of_text=True))
    face = "🙂".encode()
    assert [stream.feed(byte) for byte in [*face[:2], ord("a")]] == ["", "", "\ufffda"]
    assert stream.feed(face[0]) == ""
    assert stream.feed(256) == "", "the end of a text has no characters"
    assert stream.finish() == "\ufffd"


def save_model(**switches: Any) -> None:
    """A tiny model in the current project's results/model."""
    folder = Path("results/model")
    folder.mkdir(parents=True)
    save_weights(tiny.model(vocab_size=21, **switches).state_dict(), folder)
    save_config(tiny.config(vocab_size=21, **switches), folder)
    shutil.copy("data/tiny/char/tokenizer.json", folder)


@pytest.mark.parametrize("switches", [RECURRENT, SHARED])
def test_a_loop_is_read_as_deep_as_asked_for(
    tiny_project: Path, stage: Callable[..., Ended], switches: dict[str, Any]
) -> None:
    save_model(**switches)
    texts = {}
    for depth in ("null", "3", "1", "12"):
        ended = stage("sample", "-S", f"sample.recurrent_depth={depth}", "-S", "sample.temperature=2.0")
        assert ended.status == 0
        texts[depth] = ended.out
    assert texts["null"] == texts["3"], "as deep as it was trained"
    assert len(set(texts.values())) == 3


def test_a_depth_for_a_model_without_a_loop_gets_one_line(
    tiny_project: Path, stage: Callable[..., Ended]
) -> None:
    save_model()
    ended = stage("sample", "-S", "sample.recurrent_depth=12")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(
        "error: sample.recurrent_depth = 12: the model in results/model has no loop; "
    )
    assert not Path("results/samples.txt").exists()
