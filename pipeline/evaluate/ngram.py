"""Interpolated n-gram models. A language model that does not beat them has learned no more than counting.

An n-gram's key is its token ids read as the digits of a number in base `vocab_size`. A model only stores the
sorted keys of a text. The count of an n-gram is the number of keys equal to its own. The keys that begin with
the same context are adjacent, so the count of a context is the number of keys in that range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer[Any]]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EM_STEPS = 100
NUM_BUCKETS = 64  # an int64 count has at most 63 bits


@dataclass(frozen=True, eq=False)
class NGram:
    """N-gram frequencies, each order interpolated with the one below, from the uniform distribution up:

        p_0(w) = 1 / vocab_size
        p_n(w | h) = weight * count(h w) / count(h) + (1 - weight) * p_{n-1}(w | h without its first token)

    The weight depends on n and on the bit length of count(h), so contexts of similar frequency share one. It
    is 0 for a context that never occurred. Every token has p > 0.

    F. Jelinek, R. L. Mercer, "Interpolated estimation of Markov source parameters from sparse data", 1980;
    S. F. Chen, J. Goodman, "An empirical study of smoothing techniques for language modeling", 1999.
    """

    vocab_size: int
    counts: tuple[_Counts, ...]  # of unigrams, bigrams, ... in the training text
    weights: tuple[Floats, ...]  # (NUM_BUCKETS,) for each order

    @classmethod
    def fit(cls, train: Tokens, vocab_size: int, order: int) -> NGram:
        """Fit a model of `order` (0 uniform, 1 unigram, 2 bigram, 3 trigram) to the token ids `train` (T,).

        The final counts are from all of `train`. The weights are fitted to its last tenth, with counts from
        the rest, one order after the other: a model of order n contains the one of order n - 1 unchanged.
        With fewer than 20 tokens there is nothing to fit, and the model is uniform.
        """
        assert vocab_size**order < 2**63, "the key of an n-gram must fit in an int64"
        tokens = token_ids(train, vocab_size)
        num_counted = len(tokens) - len(tokens) // 10
        counted, held_out = tokens[:num_counted], tokens[num_counted:]

        weights = []
        probability = _uniform(held_out, vocab_size)
        for n in range(1, order + 1):
            frequency, bucket = _Counts.of(counted, n, vocab_size).frequencies(held_out)
            weights.append(_fit_weights(frequency, probability, bucket))
            probability += weights[-1][bucket] * (frequency - probability)
        counts = tuple(_Counts.of(tokens, n, vocab_size) for n in range(1, order + 1))
        return cls(vocab_size, counts, tuple(weights))

    def nll(self, tokens: Tokens) -> Floats:
        """The negative log-likelihood, in nats, of every token but the first, given those before it.

        (T,) token ids give (T - 1,) values: the first token is context only, as for a GPT. Tokens at the
        start that have too little context for an order are predicted by the orders below it.
        """
        tokens = token_ids(tokens, self.vocab_size)
        probability = _uniform(tokens, self.vocab_size)
        for counts, weights in zip(self.counts, self.weights, strict=True):
            frequency, bucket = counts.frequencies(tokens)
            probability += weights[bucket] * (frequency - probability)
        return -np.log(probability)


@dataclass(frozen=True, eq=False)
class _Counts:
    """How often the n-grams of one n, and their contexts (the first n - 1 tokens), occur in a text."""

    n: int
    vocab_size: int
    keys: Ints  # of all n-grams in the text, sorted

    @classmethod
    def of(cls, tokens: Ints, n: int, vocab_size: int) -> _Counts:
        return cls(n, vocab_size, np.sort(_keys(tokens, n, vocab_size)))

    def frequencies(self, tokens: Ints) -> tuple[Floats, Ints]:
        """For every token but the first: count(h w) / count(h), and the bucket of its context's count.

        Both are 0 if the context never occurred, or would begin before the first token.
        """
        frequency = np.zeros(tokens[1:].shape)
        bucket = np.zeros(tokens[1:].shape, dtype=np.int64)
        keys = _keys(tokens[1:] if self.n == 1 else tokens, self.n, self.vocab_size)
        context = keys - keys % self.vocab_size
        num_context = self._in_range(context, context + self.vocab_size)
        complete = slice(max(self.n - 2, 0), None)
        frequency[complete] = self._in_range(keys, keys + 1) / np.maximum(num_context, 1)
        bucket[complete] = np.frexp(num_context)[1]  # the bit length
        return frequency, bucket

    def _in_range(self, start: Ints, stop: Ints) -> Ints:
        return np.searchsorted(self.keys, stop) - np.searchsorted(self.keys, start)


def _keys(tokens: Ints, n: int, vocab_size: int) -> Ints:
    """The key of every n-gram, in the order of the text."""
    keys = np.zeros(max(len(tokens) - n + 1, 0), dtype=np.int64)
    for offset in range(n):
        keys *= vocab_size
        keys += tokens[offset : offset + len(keys)]
    return keys


def _fit_weights(frequency: Floats, lower: Floats, bucket: Ints) -> Floats:
    """Fit by EM, for each bucket, the weight of `frequency` against the `lower` order's probability.

    One extra token of either source is added to each bucket (Laplace's rule), so a fitted weight is never 0
    or 1. A bucket without tokens is interpolated between its neighbors; bucket 0, of contexts that never
    occurred, has weight 0.
    """
    num_tokens = np.bincount(bucket, minlength=NUM_BUCKETS)
    weights = np.full(NUM_BUCKETS, 0.5)
    for _ in range(EM_STEPS):
        from_frequency = weights[bucket] * frequency
        responsibility = from_frequency / (from_frequency + (1 - weights[bucket]) * lower)
        weights = (1 + np.bincount(bucket, responsibility, NUM_BUCKETS)) / (2 + num_tokens)
    fitted = 1 + np.flatnonzero(num_tokens[1:])
    filled: Floats = np.interp(np.arange(NUM_BUCKETS), [0, *fitted], [0, *weights[fitted]])
    return filled


def token_ids(tokens: Tokens, vocab_size: int) -> Ints:
    ids = np.asarray(tokens, dtype=np.int64)
    assert ids.max(initial=0) < vocab_size, "a token id is outside the vocabulary"
    return ids


def _uniform(tokens: Ints, vocab_size: int) -> Floats:
    """p_0 of every token but the first."""
    return np.full(tokens[1:].shape, 1 / vocab_size)
