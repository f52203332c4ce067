"""Sharing a context, batching, padding and windows change the time that scoring takes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate import scoring
from pipeline.evaluate.scoring import Group, encode_pair, score, sliding_windows
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.tokens.tokenizers import ByteTokenizer, CharTokenizer
from tests import tiny, zeroshot
from tests.family import VARIANTS
from tests.model.test_gpt import hugging_face_twin

CPU = torch.device("cpu")
BLOCK_SIZE = 8
VOCAB_SIZE = 9  # of the model's 11: the last two are padding
DRAW = torch.Generator().manual_seed(0)


def ids(length: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (length,), generator=DRAW).tolist()


def group(context: int, *continuations: int) -> Group:
    return Group(ids(context), [ids(length) for length in continuations])


GROUPS = [
    group(3, 1, 2, 3),
    group(5, 2),
    group(4, 4, 5, 1),
    group(1, 2, 2),
    group(6, 3, 3, 3),
    group(5, 1, 4),
]


@torch.no_grad()
def score_alone(model: GPT, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """One sequence as a whole, of which the beginning is cut off if it is too long."""
    whole = torch.tensor([*context, *continuation])[-BLOCK_SIZE - 1 :]
    targets = whole[-len(continuation) :]
    logits = model(whole[None, :-1])[0, -len(continuation) :, :VOCAB_SIZE]
    chances = logits.log_softmax(-1).gather(1, targets[:, None])
    return chances.sum().item(), bool((logits.argmax(-1) == targets).all())


def scores(model: GPT, groups: Sequence[Group], batch_size: int = 4) -> dict[int, list[tuple[float, bool]]]:
    found = score(model, groups, VOCAB_SIZE, CPU, batch_size)
    return {index: [(one.log_probability, one.greedy) for one in ones] for index, ones in found}


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_those_of_each_sequence_alone(name: str) -> None:
    model = tiny.model(**VARIANTS[name])
    found = scores(model, GROUPS)
    assert sorted(found) == list(range(len(GROUPS)))
    for index, (context, continuations) in enumerate(GROUPS):
        expected = [score_alone(model, context, continuation) for continuation in continuations]
        for (log_probability, greedy), alone in zip(found[index], expected, strict=True):
            assert log_probability == pytest.approx(alone[0], abs=1e-5)
            assert greedy == alone[1]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_whatever_is_computed_together(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    expected = scores(model, GROUPS)
    monkeypatch.setattr(scoring, "POSITIONS_PER_PROJECTION", 2)
    monkeypatch.setattr(scoring, "MAX_PADDING", 1.0)
    for index, found in scores(model, GROUPS, batch_size).items():
        for (log_probability, greedy), other in zip(found, expected[index], strict=True):
            assert log_probability == pytest.approx(other[0], abs=1e-5)
            assert greedy == other[1]


def test_a_greedy_continuation_is_called_so() -> None:
    model, context = tiny.model(), ids(3)
    with torch.no_grad():
        likeliest = int(model(torch.tensor([context]))[0, -1, :VOCAB_SIZE].argmax())
    other = (likeliest + 1) % VOCAB_SIZE
    ((_, greedy), (_, not_greedy)) = scores(model, [Group(context, [[likeliest], [other]])])[0]
    assert greedy and not not_greedy


def test_a_context_is_read_once_and_cut_where_it_does_not_fit() -> None:
    model, sizes = tiny.model(), []
    model.trunk.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[:2])))
    scores(model, [group(6, 3, 3, 3)])
    assert sizes == [(1, 5), (3, 3)]  # the last of the context predicts already
    sizes.clear()
    scores(model, [group(7, 3, 3)])
    assert sizes == [(2, BLOCK_SIZE)]


def test_a_continuation_longer_than_the_window_is_read_in_windows_from_its_end() -> None:
    model = tiny.model()
    context, continuation = ids(4), ids(2 * BLOCK_SIZE + 3)
    whole = [*context, *continuation]
    parts = [(0, 4, 7), (0, 7, 15), (14, 15, 23)]  # begins, scored from, to; the first context is 4 long
    expected = sum(score_alone(model, whole[a:b], whole[b:c])[0] for a, b, c in parts)
    assert scores(model, [Group(context, [continuation])])[0][0][0] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def recipe(model: Any, text: list[int], max_length: int, stride: int) -> tuple[float, int]:
    """Nats and tokens in the windows of transformers' documentation, by its own model's loss."""
    nats, tokens, last_end = 0.0, 0, 0
    for begin in range(0, len(text), stride):
        end = min(begin + max_length, len(text))
        window = torch.tensor([text[begin:end]])
        labels = window.clone()
        labels[:, : len(window[0]) - (end - last_end)] = -100
        predicted = int((labels[:, 1:] != -100).sum())
        nats += model(window, labels=labels).loss.item() * predicted
        tokens, last_end = tokens + predicted, end
        if end == len(text):
            return nats, tokens
    raise AssertionError("no window reached the end")


@pytest.mark.parametrize(("length", "stride"), [(3, 4), (8, 4), (9, 4), (50, 4), (51, 3), (50, 7), (50, 1)])
def test_sliding_windows_are_those_of_transformers_documentation(length: int, stride: int) -> None:
    model, text = tiny.model(vocab_size=VOCAB_SIZE), ids(length)
    groups = sliding_windows(text, BLOCK_SIZE, stride)
    nats, tokens = recipe(hugging_face_twin(model, n_head=2), text, BLOCK_SIZE, stride)
    assert -sum(one[0][0] for one in scores(model, groups).values()) == pytest.approx(nats, rel=1e-5)
    assert sum(len(new) for _, (new,) in groups) == tokens == length - 1
    assert all(len(context) >= BLOCK_SIZE - stride for context, _ in groups[1:])


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("a ship", " sails", ("a ship", " sails")),
        ("a ship ", "sails", ("a ship", " sails")),
        ("a ship \n", " sails", ("a ship", " \n sails")),
        ("", "sails", ("", "sails")),
    ],
)
def test_a_pair_is_cut_as_one_text(context: str, continuation: str, expected: tuple[str, str]) -> None:
    for tokenizer in (zeroshot.bpe(), ByteTokenizer(end_of_text=True)):
        before, after = encode_pair(tokenizer, context, continuation)
        assert (tokenizer.decode(before), tokenizer.decode(after)) == expected
        assert context or before == [tokenizer.end_of_text]


def test_a_token_on_the_border_is_predicted() -> None:
    tokenizer = zeroshot.bpe()
    assert len(tokenizer.encode("The")) == 1 < len(tokenizer.encode("Th"))
    before, after = encode_pair(tokenizer, "a Th", "e")
    assert tokenizer.decode([*before, *after]) == "a The" and after


def test_an_empty_context_needs_an_end_of_text_token() -> None:
    with pytest.raises(UserError, match="an empty context needs an end-of-text token"):
        encode_pair(CharTokenizer(" abc", end_of_text=False), " ", "abc")


def test_a_copied_cache_continues_without_changing_the_first() -> None:
    model, text = tiny.model(), torch.tensor([ids(6), ids(6)])
    with torch.no_grad():
        cache = KVCache(BLOCK_SIZE, batch=2)
        model(text[:, :4], cache)
        rows = torch.tensor([1, 0, 1])
        found = model(text[rows, 4:], cache.select(rows))
        torch.testing.assert_close(found, model(text)[rows, 4:], atol=1e-5, rtol=0)
        torch.testing.assert_close(model(text[:, 4:], cache), model(text)[:, 4:], atol=1e-5, rtol=0)
