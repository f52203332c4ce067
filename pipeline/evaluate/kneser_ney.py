"""Modified Kneser-Ney smoothing, the strongest of the n-gram models: the baseline to beat.

An n-gram's id is the rank of the pair (id of its first n - 1 tokens, last token) among those of the
training text. A pair fits in an int64 for any order, and the n-grams of one context are adjacent. So a
model is a few arrays with an entry for each distinct n-gram of the text. Nothing has an entry for each
context and each token of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.ngram import Floats, Ints, Tokens, token_ids

Ids = NDArray[np.int32]
Counts = NDArray[np.signedinteger[Any]]

ORDER = 5
USUAL_DISCOUNTS = (0.5, 1.0, 1.5)
PEAK_BYTES_PER_TOKEN = 150  # of memory, to fit a model of ORDER: 3 GB for 20 million tokens
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class KneserNey:
    """Discounted n-gram counts, each order interpolated with the one below, from the uniform distribution up:

        p_0(w) = 1 / vocab_size
        p_n(w | h) = (a(h w) - D(a(h w)) + p_{n-1}(w | h without its first token) * sum_v D(a(h v)))
                     / sum_v a(h v)

    For the highest order, a is the count of an n-gram. For the others it is the number of distinct tokens
    that come before it: a token that follows only one other is unlikely after the rest, however frequent it
    is.

    D(0) is 0, and each order has three discounts, for the counts 1, 2, and 3 or more. They are estimated
    from how many n-grams have the counts 1 to 4. An order where that does not give three above 0 takes
    USUAL_DISCOUNTS, KenLM's: in a vocabulary of characters, nearly every token follows nearly every other.

    The end of a document is a token like others, and contexts reach across it, as in
    pipeline.evaluate.ngram and in the windows of a GPT.

    S. F. Chen, J. Goodman, "An empirical study of smoothing techniques for language modeling", 1999, after
    R. Kneser, H. Ney, "Improved backing-off for m-gram language modeling", 1995.
    """

    vocab_size: int
    orders: tuple[_Order, ...]  # unigrams, bigrams, ...

    @classmethod
    def fit(cls, train: Tokens, vocab_size: int, order: int = ORDER) -> KneserNey:
        """Fit a model of `order` to the token ids `train` (T,), in at most T * PEAK_BYTES_PER_TOKEN bytes."""
        assert len(train) < 2**31, "an id must fit in an int32"
        assert len(train) * vocab_size < NEVER, "the key of an n-gram must fit in an int64"
        tokens = token_ids(train, vocab_size).astype(np.int32)
        ids: Ids = np.zeros(len(tokens) + 1, dtype=np.int32)  # of the empty n-gram, at every position
        num_contexts, keys = 1, np.empty(0, dtype=np.int64)
        orders = []
        for n in range(1, order + 1):
            longer_keys, longer_ids, first, counts = _distinct(
                ids[:-1] * np.int64(vocab_size) + tokens[n - 1 :]
            )
            if n > 1:
                num_before = np.bincount(ids[first + 1], minlength=len(keys))
                orders.append(_Order.of(keys, num_before, num_contexts, vocab_size))
                num_contexts = len(keys)
            keys, ids = longer_keys, longer_ids
        if order:
            orders.append(_Order.of(keys, counts, num_contexts, vocab_size))
        return cls(vocab_size, tuple(orders))

    def nll(self, tokens: Tokens) -> Floats:
        """The negative log-likelihood, in nats, of every token but the first, given those before it.

        (T,) token ids give (T - 1,) values: the first token is context only, as for a GPT. Tokens at the
        start that have too little context for an order are predicted by the orders below it.
        """
        tokens = token_ids(tokens, self.vocab_size)
        probability = np.full(len(tokens), 1 / self.vocab_size)
        ids: Ints = np.zeros(len(tokens) + 1, dtype=np.int64)
        for n, order in enumerate(self.orders, start=1):
            contexts = ids[:-1]
            ids = order.find(contexts, tokens[n - 1 :], self.vocab_size)
            probability[n - 1 :] *= order.left_over[contexts]
            probability[n - 1 :] += order.discounted[ids]
        return -np.log(probability[1:])


@dataclass(frozen=True, eq=False)
class _Order:
    """The n-grams of one n. The last entry of each array, at -1, is for what the text does not have."""

    keys: Ints  # of the distinct n-grams, sorted
    discounted: NDArray[np.float32]  # their discounted counts, as a share of all counts after the context
    left_over: NDArray[np.float32]  # for each context, the share that was taken away by the discounts

    @classmethod
    def of(cls, keys: Ints, counts: Counts, num_contexts: int, vocab_size: int) -> _Order:
        contexts = (keys // vocab_size).astype(np.int32)
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(contexts, counts, num_contexts)
        never = total == 0
        total[never] = 1
        left_over = np.bincount(contexts, discounts, num_contexts) / total
        left_over[never] = 1
        discounted = (counts - discounts) / total[contexts]
        return cls(
            np.append(keys, NEVER),
            np.append(discounted, 0).astype(np.float32),
            np.append(left_over, 1).astype(np.float32),
        )

    def find(self, contexts: Ints, tokens: Ints, vocab_size: int) -> Ints:
        """The ids of n-grams, given those of their contexts; -1 for n-grams that never occurred."""
        keys = contexts * vocab_size + tokens
        in_order = np.argsort(keys)  # sorted, the search stays in the cache: ten times as fast
        places = np.empty_like(keys)
        places[in_order] = np.searchsorted(self.keys, keys[in_order])
        return np.where(self.keys[places] == keys, places, -1)


def _distinct(keys: Ints) -> tuple[Ints, Ids, Ids, Ids]:
    """The distinct keys, sorted; the rank of each key among them; where each was found, and how often."""
    order = np.argsort(keys)
    keys = keys[order]
    is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    ids = np.empty(len(keys), dtype=np.int32)
    ids[order] = np.cumsum(is_new, dtype=np.int32) - 1
    counts = np.diff(np.flatnonzero(is_new), append=len(keys)).astype(np.int32)
    return keys[is_new], ids, order[is_new].astype(np.int32), counts


def _discounts(counts: Counts) -> Floats:
    """What is taken from a count of 0, 1, 2, and 3 or more (4,)."""
    number = np.bincount(np.minimum(counts, 5), minlength=6)[1:5]  # of n-grams with the counts 1 to 4
    with np.errstate(divide="ignore", invalid="ignore"):
        share = number[0] / (number[0] + 2 * number[1])
        taken = np.arange(1, 4) - np.arange(2, 5) * share * number[1:] / number[:-1]
    if not (taken > 0).all():  # also if there are none of a count
        taken = np.array(USUAL_DISCOUNTS)
    return np.append(0, taken)
