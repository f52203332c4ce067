"""Scaling laws: how the loss depends on parameters and training tokens, fitted to a sweep of runs.

L(N, D) = E + A / N^alpha + B / D^beta for N parameters and D tokens is approach 3 of Hoffmann et al. 2022
("Training compute-optimal large language models"); minima of the loss at equal compute are their approach 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

HUBER = 1e-3  # residuals of log L beyond this count by their size, not their square, as in the paper
RESAMPLES = 200  # of the runs, for intervals
INTERVAL = (5, 95)  # percent of the resamples below its ends
ITERATIONS = 300
# Of log E, log A', log B', log alpha and log beta: beyond these a constant means nothing, or overflows.
LEAST, MOST = np.array([-20.0, -20.0, -20.0, -7.0, -7.0]), np.array([5.0, 20.0, 20.0, 1.6, 1.6])
FEWEST = 3  # sizes that a parabola goes through
MOST_LOG_PARAMS = 40.0  # of the best size: more has no meaning
SMALLEST = 1e-12  # added to the curvature in each direction, so that it can be inverted


@dataclass(frozen=True)
class Point:
    """A finished run: what it had, what it cost, and the loss that it reached."""

    params: float
    tokens: float
    flops: float
    seconds: float
    loss: float  # of the validation split, nats per token


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token."""

    E: float  # what no model and no amount of text gets below
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        return float(self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta)

    @property
    def params_exponent(self) -> float:
        """The best number of parameters grows with this power of compute, if a token costs 6 N FLOPs."""
        return self.beta / (self.alpha + self.beta)


# Constants for MassiveText and its tokenizer: only the exponents compare with those of another text. Those of
# Hoffmann et al. are not the rounded ones of the paper's equation 10 but those of its TeX source, which
# Besiroglu et al. 2024 ("Chinchilla scaling: a replication attempt", arXiv:2404.10102) quote; they fitted the
# same runs again.
PUBLISHED = {
    "Hoffmann et al. 2022": Law(1.6934, 406.4, 410.7, 0.3392, 0.2849),
    "Besiroglu et al. 2024": Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
}


def fit_law(points: Sequence[Point]) -> Law:
    """The law with the least Huber loss of log L, from many starts."""
    return _laws(points, np.ones((1, len(points))))[0]


def resampled_laws(points: Sequence[Point], seed: int = 0) -> list[Law]:
    """Laws fitted to RESAMPLES samples of the runs, drawn with replacement (bootstrap)."""
    number = len(points)
    draws = np.random.default_rng(seed).integers(0, number, (RESAMPLES, number))
    counts = np.stack([np.bincount(draw, minlength=number) for draw in draws]).astype(float)
    return _laws(points, counts, known=fit_law(points))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The ends between which nine of ten values are."""
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)


@dataclass(frozen=True)
class Cost:
    """What a training token costs, in FLOPs or seconds, as a power of the parameters: scale N^exponent."""

    scale: float
    exponent: float

    def per_token(self, params: float) -> float:
        return float(self.scale * params**self.exponent)


def cost_of(points: Sequence[Point], unit: str) -> Cost:
    """The cost in `unit`, "flops" or "seconds", by least squares on logarithms."""
    each = [getattr(point, unit) / point.tokens for point in points]
    exponent, log_scale = np.polyfit(np.log([point.params for point in points]), np.log(each), 1)
    return Cost(float(np.exp(log_scale)), float(exponent))


@dataclass(frozen=True)
class Best:
    """The size that reaches the least loss with a budget, and how long it trains for that."""

    params: float
    tokens: float
    loss: float


def best_size(law: Law, cost: Cost, budget: float) -> Best | None:
    """The best size for a budget in the unit of `cost`: where the loss has no slope over size.

    None if a larger model costs no more, or if the law is so weak that no size is best.
    """
    growth = cost.exponent * law.beta
    if growth <= 0:
        return None
    ratio = math.log(law.alpha * law.A) - math.log(growth * law.B)
    log_params = (ratio + law.beta * math.log(budget / cost.scale)) / (law.alpha + growth)
    if not 0 < log_params < MOST_LOG_PARAMS:
        return None
    params = math.exp(log_params)
    tokens = budget / cost.per_token(params)
    return Best(params, tokens, law.loss(params, tokens))


@dataclass(frozen=True)
class IsoFlop:
    """Losses of several sizes at equal compute, and the parameters and loss at their parabola's minimum."""

    flops: float
    measured: Sequence[tuple[float, float]]  # (parameters, loss), in order; between two runs: interpolated
    params: float
    loss: float


def at_equal_compute(points: Sequence[Point], budgets: int = 6) -> dict[float, list[tuple[float, float]]]:
    """(parameters, loss) of each size after amounts of compute, in FLOPs, that three or more sizes reached.

    The loss of a size at such an amount is interpolated between its runs, linearly over log FLOPs.
    """
    by_size, every = _by_size(points), [point.flops for point in points]
    found = {}
    for flops in np.geomspace(min(every), max(every), budgets + 2)[1:-1].tolist():
        measured = [
            (params, _loss_at(flops, runs))
            for params, runs in by_size.items()
            if runs[0].flops <= flops <= runs[-1].flops
        ]
        if len(measured) >= FEWEST:
            found[flops] = measured
    return found


def iso_flops(points: Sequence[Point]) -> list[IsoFlop]:
    """Minima of the loss over size at equal compute that are between the smallest and the largest size."""
    return [
        IsoFlop(flops, measured, *minimum)
        for flops, measured in at_equal_compute(points).items()
        if (minimum := _minimum(measured)) is not None
    ]


def iso_flop_exponent(minima: Sequence[IsoFlop]) -> float | None:
    """The power of compute with which the best size grows; None without two minima."""
    if len(minima) < 2:
        return None
    compute, params = (np.log([getattr(each, of) for each in minima]) for of in ("flops", "params"))
    return float(np.polyfit(compute, params, 1)[0])


def iso_flop_interval(points: Sequence[Point]) -> tuple[float, float] | None:
    """The lowest and highest exponent if one size is left out; None if one of these cannot be had."""
    sizes = list(_by_size(points))
    found = [
        iso_flop_exponent(iso_flops([point for point in points if point.params != size])) for size in sizes
    ]
    known = [value for value in found if value is not None]
    return (min(known), max(known)) if len(known) == len(sizes) else None


def _loss_at(flops: float, runs: Sequence[Point]) -> float:
    """The loss of a size after so much compute, between two of its runs."""
    logs, losses = np.log([run.flops for run in runs]), [run.loss for run in runs]
    return float(np.interp(np.log(flops), logs, losses))


def _by_size(points: Sequence[Point]) -> dict[float, list[Point]]:
    return {
        params: sorted((point for point in points if point.params == params), key=lambda point: point.flops)
        for params in sorted({point.params for point in points})
    }


def _minimum(measured: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Parameters and loss at the lowest point of a parabola over log parameters, if that is within."""
    logs, losses = np.log([params for params, _ in measured]), [loss for _, loss in measured]
    parabola = np.polynomial.Polynomial.fit(logs, losses, 2).convert()
    _, slope, curvature = map(float, parabola.coef)
    if curvature <= 0 or not logs[0] < (lowest := -slope / (2 * curvature)) < logs[-1]:
        return None
    return math.exp(lowest), float(parabola(lowest))


def _laws(points: Sequence[Point], counts: np.ndarray, known: Law | None = None) -> list[Law]:
    """The best law for each row of `counts` (R, n), which says how often each of the n runs counts.

    A fit starts from each of several laws, and from `known`, and keeps the best end.
    """
    logs = {of: np.log([getattr(point, of) for point in points]) for of in ("params", "tokens", "loss")}
    middle = logs["params"].mean(), logs["tokens"].mean()  # centred, the five constants hardly depend on it
    x, y = logs["params"] - middle[0], logs["tokens"] - middle[1]
    starts = np.array(list(_starts(logs["loss"], known, middle)))  # (S, 5)
    theta = np.tile(starts, (len(counts), 1))  # (R S, 5)
    theta, error = _descend(theta, x, y, logs["loss"], np.repeat(counts, len(starts), axis=0))
    shape = len(counts), len(starts)
    chosen = theta.reshape(*shape, 5)[np.arange(len(counts)), error.reshape(shape).argmin(1)]
    return [_law(row, middle) for row in chosen]


def _starts(losses: np.ndarray, known: Law | None, middle: tuple[float, float]) -> Iterator[np.ndarray]:
    """Constants (log E, log A', log B', log alpha, log beta) to start from; A' and B' belong to `middle`."""
    if known is not None:
        a, b = (
            math.log(factor) - exponent * log
            for factor, exponent, log in zip(
                (known.A, known.B), (known.alpha, known.beta), middle, strict=True
            )
        )
        yield np.array([math.log(known.E), a, b, math.log(known.alpha), math.log(known.beta)])
    exponents, shares = ((0.1, 0.3, 0.7, 1.5), (0.2, 0.6, 0.9)) if known is None else ((0.3,), (0.6,))
    lowest, typical = np.exp(losses.min()), np.exp(losses.mean())
    for share in shares:
        rest = math.log((typical - share * lowest) / 2)
        for alpha in exponents:
            for beta in exponents:
                yield np.array([math.log(share * lowest), rest, rest, math.log(alpha), math.log(beta)])


def _law(theta: np.ndarray, middle: tuple[float, float]) -> Law:
    e, a, b, log_alpha, log_beta = theta
    alpha, beta = math.exp(log_alpha), math.exp(log_beta)
    return Law(math.exp(e), math.exp(a + alpha * middle[0]), math.exp(b + beta * middle[1]), alpha, beta)


def _descend(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, log_loss: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt for many starts (S, 5) at once; returns where they end and their Huber loss (S).

    Squares are weighted anew in each iteration, so that they are those of Huber's loss (IRLS).
    """
    damping = np.full(len(theta), 1e-2)
    residual, jacobian = _residuals(theta, x, y, log_loss)
    error = _huber(residual, counts)
    for _ in range(ITERATIONS):
        weight = counts * np.minimum(1, HUBER / np.maximum(np.abs(residual), SMALLEST))  # (S, n)
        weighted = jacobian * weight[..., None]
        curvature = np.einsum("sni,snj->sij", weighted, jacobian)
        diagonal = np.einsum("sii->si", curvature)
        diagonal += damping[:, None] * diagonal + SMALLEST
        step = np.linalg.solve(curvature, np.einsum("sni,sn->si", weighted, residual)[..., None])[..., 0]
        tried = np.clip(theta - np.clip(step, -1, 1), LEAST, MOST)
        new_residual, new_jacobian = _residuals(tried, x, y, log_loss)
        new_error = _huber(new_residual, counts)
        better = new_error < error
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
        theta, residual, jacobian, error = (
            np.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in (
                (tried, theta),
                (new_residual, residual),
                (new_jacobian, jacobian),
                (new_error, error),
            )
        )
    return theta, error


def _residuals(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, log_loss: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of log L (S, n) and their derivatives (S, n, 5)."""
    e, a, b, log_alpha, log_beta = (theta[:, [i]] for i in range(5))
    alpha_x, beta_y = np.exp(log_alpha) * x, np.exp(log_beta) * y
    terms = np.stack(np.broadcast_arrays(e, a - alpha_x, b - beta_y))  # (3, S, n)
    largest = terms.max(0)
    shares = np.exp(terms - largest)
    total = shares.sum(0)
    shares /= total
    derivatives = np.stack([*shares, -shares[1] * alpha_x, -shares[2] * beta_y], axis=-1)
    return largest + np.log(total) - log_loss, derivatives


def _huber(residual: np.ndarray, counts: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return (counts * np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))).sum(1)
