"""How often a recurrent block is applied: a rounded, capped log-normal, or uniform."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.model.depth_distribution import DepthDistribution


def test_probabilities_by_hand() -> None:
    """Mean 4, spread 1/2: the logarithm is normal about ln 4 − 1/8; depth 3 stands for 2.5 … 3.5."""
    log = NormalDist(math.log(4) - 0.125, 0.5)
    distribution = DepthDistribution.log_normal(mean=4, spread=0.5, maximum=8)
    assert len(distribution.probabilities) == 8
    assert distribution.probabilities[0] == pytest.approx(log.cdf(math.log(1.5)), abs=1e-12)
    assert distribution.probabilities[0] == pytest.approx(0.0435, abs=1e-4)  # Φ(−1.7117)
    assert distribution.probabilities[2] == pytest.approx(
        log.cdf(math.log(3.5)) - log.cdf(math.log(2.5)), abs=1e-12
    )
    assert distribution.probabilities[7] == pytest.approx(1 - log.cdf(math.log(7.5)), abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "spread", "maximum"), [(1, 0.5, 2), (4, 0.5, 8), (32, 1.0, 64), (3, 0.2, 3)]
)
def test_probabilities_sum_to_one(mean: int, spread: float, maximum: int) -> None:
    probabilities = DepthDistribution.log_normal(mean, spread, maximum).probabilities
    assert len(probabilities) == maximum
    assert (probabilities >= 0).all()
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("mean", "spread"), [(4, 0.5), (8, 0.5), (32, 0.25), (16, 1.0)])
def test_the_mean_is_the_one_asked_for(mean: int, spread: float) -> None:
    far = DepthDistribution.log_normal(mean, spread, maximum=100 * mean)
    assert far.mean == pytest.approx(mean, rel=0.01)
    if spread <= 0.5:  # the default cap takes little away
        assert DepthDistribution.log_normal(mean, spread, 2 * mean).mean == pytest.approx(mean, rel=0.06)


def test_without_spread_the_depth_is_constant() -> None:
    distribution = DepthDistribution.log_normal(mean=5, spread=0.0, maximum=10)
    assert distribution.mean == 5
    numbers = np.linspace(0, 1, 1000, endpoint=False)
    assert set(distribution.quantile(numbers)) == {5}
    assert set(DepthDistribution.log_normal(3, 0.0, 3).quantile(numbers)) == {3}


def test_uniform() -> None:
    distribution = DepthDistribution.uniform(5)
    assert distribution.probabilities == pytest.approx(np.full(5, 0.2))
    assert distribution.mean == pytest.approx(3)


@pytest.mark.parametrize(
    "distribution",
    [
        DepthDistribution.log_normal(4, 0.5, 8),
        DepthDistribution.log_normal(2, 1.5, 6),
        DepthDistribution.uniform(6),
    ],
)
def test_draws_follow_the_probabilities(distribution: DepthDistribution) -> None:
    draws = distribution.quantile(np.random.default_rng(7).random(20_000))
    maximum = len(distribution.probabilities)
    assert draws.min() == 1
    assert draws.max() == maximum
    expected = 20_000 * distribution.probabilities
    observed = np.bincount(draws, minlength=maximum + 1)[1:]
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 25  # 7 degrees of freedom at most: p < 0.001
