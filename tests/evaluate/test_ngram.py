from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate.ngram import NGram

Source = tuple[np.ndarray, np.ndarray, np.ndarray]


def markov_chain(transitions: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Tokens of a chain whose next token depends on as many as `transitions` has axes, less one."""
    cumulative = transitions.cumsum(axis=-1)
    tokens = [0] * (transitions.ndim - 1)
    for draw in np.random.default_rng(seed).random(length):
        context = tuple(tokens[1 - transitions.ndim :])
        tokens.append(int(np.searchsorted(cumulative[context], draw)))
    return np.array(tokens)


@pytest.fixture(scope="module")
def second_order() -> Source:
    """Transition probabilities, a training text and a validation text."""
    transitions = np.random.default_rng(0).dirichlet([2, 1, 0.5, 0.5, 0.2], size=(5, 5))
    return transitions, markov_chain(transitions, 50_000, seed=1), markov_chain(transitions, 10_000, seed=2)


def test_order_zero_is_uniform() -> None:
    nll = NGram.fit(np.arange(50), vocab_size=50_257, order=0).nll(np.array([3, 1, 4, 1, 5]))
    np.testing.assert_allclose(nll, [math.log(50_257)] * 4)


def test_bigram_by_hand() -> None:
    # Counted: 0 1 nine times over. Held out: a 2 after a 0. Neither unigrams nor bigrams foresaw it, so with
    # one imagined token for either source every weight is (1 + 0) / (2 + 1).
    model = NGram.fit(np.array([0, 1] * 9 + [0, 2]), vocab_size=3, order=2)
    unigram = [1 / 3 * count / 20 + 2 / 3 / 3 for count in (10, 9, 1)]
    expected = [
        1 / 3 * 9 / 10 + 2 / 3 * unigram[1],  # 0 1
        1 / 3 * 9 / 9 + 2 / 3 * unigram[0],  # 1 0
        1 / 3 * 1 / 10 + 2 / 3 * unigram[2],  # 0 2
        unigram[0],  # nothing ever followed a 2
    ]
    np.testing.assert_allclose(np.exp(-model.nll(np.array([0, 1, 0, 2, 0]))), expected)


@pytest.mark.parametrize("order", range(5))
def test_agrees_with_counting_one_token_at_a_time(order: int) -> None:
    rng = np.random.default_rng(0)
    train, val = rng.zipf(1.5, 500) % 7, rng.zipf(1.5, 50) % 8  # 7 is never seen in training
    model = NGram.fit(train, vocab_size=8, order=order)
    text = train.tolist()

    def occurrences(ngram: list[int], positions: int) -> int:
        return sum(text[i : i + len(ngram)] == ngram for i in range(positions))

    def probability(token: int, context: list[int], n: int) -> float:
        if n == 0:
            return 1 / 8
        lower = probability(token, context[1:], n - 1)
        seen = occurrences(context, len(text) - n + 1)
        if len(context) < n - 1 or not seen:
            return lower
        weight = model.weights[n - 1][seen.bit_length()]
        return weight * occurrences([*context, token], len(text)) / seen + (1 - weight) * lower

    expected = []
    for i in range(1, len(val)):
        n = min(order, i + 1)
        expected.append(probability(int(val[i]), val[i - n + 1 : i].tolist() if n > 1 else [], n))
    np.testing.assert_allclose(np.exp(-model.nll(val)), expected)


@pytest.mark.parametrize("order", range(5))
def test_probabilities_sum_to_one_after_every_context(order: int) -> None:
    train = np.random.default_rng(0).choice(3, 200)  # of 4: contexts with a 3 are never seen
    model = NGram.fit(train, vocab_size=4, order=order)
    for context in product(range(4), repeat=3):
        total = sum(math.exp(-model.nll(np.array([*context, token]))[-1]) for token in range(4))
        assert total == pytest.approx(1)


def test_weight_maximizes_the_likelihood_of_the_last_tenth() -> None:
    rng = np.random.default_rng(0)
    train = np.concatenate(
        [rng.choice(4, 900, p=[0.7, 0.2, 0.1, 0]), rng.choice(4, 100, p=[0.5, 0.2, 0.2, 0.1])]
    )
    frequency = np.bincount(train[:900], minlength=4) / 900
    weights = np.linspace(0.001, 0.999, 999)
    mixture = np.outer(weights, frequency) + (1 - weights)[:, None] / 4  # (999, 4)
    likelihood = np.log(mixture[:, train[901:]]).sum(axis=1) + np.log(weights) + np.log(1 - weights)
    best = weights[likelihood.argmax()]
    assert 0.1 < best < 0.9
    model = NGram.fit(train, vocab_size=4, order=1)
    assert model.weights[0][(900).bit_length()] == pytest.approx(best, abs=0.002)


def test_a_growing_count_keeps_the_weight_of_the_bucket_before() -> None:
    train = np.random.default_rng(0).choice(4, 1_100, p=[0.7, 0.2, 0.1, 0])
    weights = NGram.fit(train, vocab_size=4, order=1).weights[0]
    counted, all_of_it = (990).bit_length(), (1_100).bit_length()
    assert counted != all_of_it
    assert weights[all_of_it] == weights[counted] > 0.5


def test_orders_improve_up_to_that_of_the_source_and_reach_its_entropy(second_order: Source) -> None:
    transitions, train, val = second_order
    uniform, unigram, bigram, trigram, fourgram = (
        NGram.fit(train, vocab_size=5, order=order).nll(val)[1:].mean() for order in range(5)
    )
    truth = -np.log(transitions[val[:-2], val[1:-1], val[2:]]).mean()
    assert uniform > unigram + 0.05
    assert unigram > bigram + 0.05
    assert bigram > trigram + 0.05
    assert truth < trigram < truth + 0.01
    assert trigram - 0.001 < fourgram < trigram + 0.01  # nothing to gain, next to nothing to lose


def test_higher_order_contains_the_lower_one(second_order: Source) -> None:
    _, train, val = second_order
    bigram, trigram = (NGram.fit(train, vocab_size=5, order=order) for order in (2, 3))
    np.testing.assert_array_equal(bigram.weights, trigram.weights[:2])
    assert trigram.nll(val)[0] == bigram.nll(val)[0]  # one token of context: too little for a trigram
    assert trigram.nll(val)[1] != bigram.nll(val)[1]


def test_nll_depends_only_on_the_ngram_that_a_token_ends(second_order: Source) -> None:
    _, train, val = second_order
    model = NGram.fit(train, vocab_size=5, order=3)
    before = model.nll(val)
    changed = val.copy()
    changed[100] = (changed[100] + 1) % 5
    np.testing.assert_array_equal(np.flatnonzero(model.nll(changed) != before) + 1, [100, 101, 102])
    np.testing.assert_array_equal(model.nll(val), before)  # evaluating leaves no trace in the model


def test_tokens_never_seen_have_some_probability() -> None:
    nll = NGram.fit(np.zeros(1_000, dtype=np.int64), vocab_size=3, order=3).nll(np.array([0, 0, 0, 1, 2, 0]))
    assert np.isfinite(nll).all()
    assert nll[2] > math.log(3)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_reads_memmapped_shards(tmp_path: Path, dtype: str) -> None:
    tokens = np.random.default_rng(0).choice([0, 1, 65_534, 65_535], 500)
    tokens.astype(dtype).tofile(tmp_path / "train.bin")
    shard = np.memmap(tmp_path / "train.bin", dtype=dtype, mode="r")
    expected = NGram.fit(tokens, vocab_size=65_536, order=3).nll(tokens)
    np.testing.assert_array_equal(NGram.fit(shard, vocab_size=65_536, order=3).nll(shard), expected)


def test_keys_of_large_vocabularies_do_not_collide() -> None:
    small = np.random.default_rng(0).choice(4, 1_000)
    spread = 2**20 - 4 + small  # the top of the vocabulary
    below = NGram.fit(small, vocab_size=2**20, order=3).nll(small)
    np.testing.assert_allclose(NGram.fit(spread, vocab_size=2**20, order=3).nll(spread), below)
    with pytest.raises(AssertionError, match="int64"):
        NGram.fit(small, vocab_size=2**21, order=3)


@pytest.mark.parametrize("order", range(4))
def test_texts_of_a_few_tokens(order: int) -> None:
    for train_length, val_length in product(range(32), range(5)):
        model = NGram.fit(np.arange(train_length) % 2, vocab_size=2, order=order)
        nll = model.nll(np.arange(val_length) % 2)
        assert nll.shape == (max(val_length - 1, 0),)
        assert np.isfinite(nll).all()
        if train_length < 20:
            np.testing.assert_allclose(nll, math.log(2))


def test_a_token_outside_the_vocabulary_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="outside the vocabulary"):
        NGram.fit(np.arange(30), vocab_size=29, order=1)
