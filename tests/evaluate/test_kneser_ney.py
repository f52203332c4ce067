"""Modified Kneser-Ney agrees with its formulas, word by word, and stays within its memory."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import product

import numpy as np
import pytest

from pipeline.evaluate.kneser_ney import PEAK_BYTES_PER_TOKEN, USUAL_DISCOUNTS, KneserNey

NGram = tuple[int, ...]


class Reference:
    """The formulas of Chen and Goodman with dictionaries, for one token at a time."""

    def __init__(self, text: list[int], vocab_size: int, order: int) -> None:
        grams = [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(order + 2)]
        self.counts = [Counter(gram[1:] for gram in longer) for longer in grams[1:]]  # distinct tokens before
        self.counts[order] = grams[order]
        self.discounts = [self.estimate(counts) for counts in self.counts]
        self.vocab_size = vocab_size

    @staticmethod
    def estimate(counts: Counter[NGram]) -> tuple[float, ...]:
        n1, n2, n3, n4 = (sum(count == number for count in counts.values()) for number in (1, 2, 3, 4))
        if 0 in (n1, n2, n3):
            return USUAL_DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return discounts if min(discounts) > 0 else USUAL_DISCOUNTS

    def probability(self, token: int, context: NGram) -> float:
        n = len(context) + 1
        lower = self.probability(token, context[1:]) if n > 1 else 1 / self.vocab_size
        after = {gram: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        total = sum(after.values())
        if not total:
            return lower
        taken = {gram: self.discounts[n][min(count, 3) - 1] for gram, count in after.items()}
        gram = (*context, token)
        own = (after[gram] - taken[gram]) / total if gram in after else 0
        return own + sum(taken.values()) / total * lower


@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize("length", [0, 1, 3, 40, 1000])
def test_agrees_with_the_formulas(order: int, length: int) -> None:
    rng = np.random.default_rng(length)
    train, val = rng.zipf(1.5, length) % 9, rng.zipf(1.5, 60) % 10  # 9 is never seen in training
    reference = Reference(train.tolist(), 10, order)
    expected = []
    for i in range(1, len(val)):
        context = val[max(0, i - order + 1) : i] if order > 1 else val[:0]
        expected.append(reference.probability(int(val[i]), tuple(context.tolist())))
    nll = KneserNey.fit(train, vocab_size=10, order=order).nll(val)
    np.testing.assert_allclose(np.exp(-nll), expected, rtol=1e-6)


def words(length: int, state: int) -> list[int]:
    """A text in which a word depends on the one before it, by a rank with Zipf's distribution."""
    text = [0]
    for _ in range(length):
        state = (1103515245 * state + 12345) % 2**31
        rank = 1000 // (1 + (state >> 12) % 1000)
        text.append((31 * text[-1] + rank) % 997)
    return text[1:]


# From KenLM's `lmplz -o 3` and `query -v word`, each text on one line: nats per word after the first `order`.
@pytest.mark.parametrize(("order", "kenlm"), [(3, 4.214381), (5, 4.230303)])
def test_agrees_with_kenlm(order: int, kenlm: float) -> None:
    train, val = words(4000, 1), words(500, 2)
    ids = {word: number for number, word in enumerate(sorted(set(train)), start=2)}
    start, end, unknown = 0, 1, 0  # KenLM's vocabulary has no start, but one word for all unknown ones
    model = KneserNey.fit(np.array([start, *map(ids.__getitem__, train), end]), len(ids) + 2, order)
    nll = model.nll(np.array([start, *(ids.get(word, unknown) for word in val), end]))
    assert nll[order:].mean() == pytest.approx(kenlm, abs=1e-4)


def test_discounts_are_estimated_where_the_text_allows() -> None:
    reference = Reference((np.random.default_rng(1000).zipf(1.5, 1000) % 9).tolist(), 10, 5)
    assert reference.discounts[1] == USUAL_DISCOUNTS  # nearly every token comes after nearly every other
    assert all(discounts != USUAL_DISCOUNTS for discounts in reference.discounts[3:])


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("length", [0, 5, 300])
def test_probabilities_sum_to_one_after_every_context(order: int, length: int) -> None:
    train = np.random.default_rng(0).choice(3, length)  # of 4: contexts with a 3 are never seen
    model = KneserNey.fit(train, vocab_size=4, order=order)
    for context in product(range(4), repeat=4):
        total = sum(math.exp(-model.nll(np.array([*context, token]))[-1]) for token in range(4))
        assert total == pytest.approx(1, abs=1e-6)


def test_a_token_that_follows_only_one_other_is_unlikely_after_the_rest() -> None:
    rng = np.random.default_rng(0)
    others = rng.integers(2, 50, 900).reshape(300, 3)
    text = np.insert(others, 3, [[0], [1]], axis=1).ravel()  # 0 1, as often as all others together
    model = KneserNey.fit(text, vocab_size=51, order=2)
    after_known, after_new = model.nll(np.array([0, 1])), model.nll(np.array([50, 1]))
    assert math.exp(-after_known[0]) > 0.9
    assert math.exp(-after_new[0]) < 1 / 51 < (text == 1).mean() / 4


def test_nll_depends_only_on_the_ngram_that_a_token_ends() -> None:
    rng = np.random.default_rng(0)
    train, val = rng.zipf(1.5, 2_000) % 9, rng.zipf(1.5, 200) % 9
    model = KneserNey.fit(train, vocab_size=9, order=4)
    before = model.nll(val)
    changed = val.copy()
    changed[100] = (changed[100] + 1) % 9
    differs = np.flatnonzero(model.nll(changed) != before) + 1
    assert differs.min() == 100 and differs.max() <= 103
    np.testing.assert_array_equal(model.nll(val), before)  # evaluating leaves no trace in the model


def test_keys_of_large_vocabularies_do_not_collide() -> None:
    small = np.random.default_rng(0).zipf(1.5, 1_000) % 5
    spread = 2**20 - 5 + small  # the top of the vocabulary
    below = KneserNey.fit(small, vocab_size=2**20).nll(small)
    np.testing.assert_allclose(KneserNey.fit(spread, vocab_size=2**20).nll(spread), below)


@pytest.mark.parametrize("order", range(6))
def test_texts_of_a_few_tokens(order: int) -> None:
    for train_length, val_length in product(range(12), range(7)):
        nll = KneserNey.fit(np.arange(train_length) % 2, vocab_size=2, order=order).nll(
            np.arange(val_length) % 2
        )
        assert nll.shape == (max(val_length - 1, 0),)
        assert np.isfinite(nll).all()


@pytest.mark.parametrize("vocab_size", [300, 50_257])
def test_memory_is_bounded_by_the_number_of_tokens(vocab_size: int) -> None:
    tokens = np.random.default_rng(0).integers(0, vocab_size, 50_000)  # hardly an n-gram occurs twice
    tracemalloc.start()
    try:
        KneserNey.fit(tokens, vocab_size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES_PER_TOKEN * len(tokens)


def test_a_token_outside_the_vocabulary_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="outside the vocabulary"):
        KneserNey.fit(np.arange(30), vocab_size=29)
