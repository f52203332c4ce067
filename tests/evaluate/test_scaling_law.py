"""A law is found again from losses that follow it, and what it says is what the papers say."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import product

import numpy as np
import pytest

from pipeline.evaluate.scaling_law import (
    PUBLISHED,
    Cost,
    Law,
    Point,
    best_size,
    cost_of,
    fit_law,
    interval,
    iso_flop_exponent,
    iso_flop_interval,
    iso_flops,
    resampled_laws,
)

SIX_ND = Cost(6.0, 1.0)
SMALL = Law(E=1.5, A=60.0, B=300.0, alpha=0.28, beta=0.4)
SIZES, TOKENS = np.geomspace(3e5, 3e6, 5), np.geomspace(2e5, 1.6e6, 4)
LARGE_SIZES, LARGE_TOKENS = np.geomspace(7e7, 1.6e10, 8), np.geomspace(5e9, 5e11, 6)


def runs(law: Law, sizes: np.ndarray, tokens: np.ndarray, noise: float = 0.0) -> list[Point]:
    """Runs whose losses follow the law, each but for a factor of about 1 ± noise."""
    draw = np.random.default_rng(0)
    return [
        Point(n, d, 6 * n * d, n * d / 1e9, law.loss(n, d) * float(np.exp(noise * draw.standard_normal())))
        for n, d in product(sizes.tolist(), tokens.tolist())
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_laws_are_found_again(name: str) -> None:
    found = fit_law(runs(PUBLISHED[name], LARGE_SIZES, LARGE_TOKENS))
    assert astuple(found) == pytest.approx(astuple(PUBLISHED[name]), rel=1e-3)


def test_a_law_of_a_small_sweep_is_found_again_within_its_noise() -> None:
    points = runs(SMALL, SIZES, TOKENS, noise=0.002)
    exact, noisy, resampled = fit_law(runs(SMALL, SIZES, TOKENS)), fit_law(points), resampled_laws(points)
    assert astuple(exact) == pytest.approx(astuple(SMALL), rel=1e-3)
    for of in ("E", "alpha", "beta"):
        low, high = interval([getattr(law, of) for law in resampled])
        assert low < getattr(noisy, of) < high
        assert low <= getattr(SMALL, of) + 0.1 and getattr(SMALL, of) - 0.1 <= high
    assert resampled == resampled_laws(points), "the same each time"


def test_one_run_that_failed_does_not_bend_the_law() -> None:
    """Huber's loss: in squares, this one would outweigh all others."""
    points = runs(SMALL, SIZES, TOKENS)
    points[7] = replace(points[7], loss=1.3 * points[7].loss)
    assert astuple(fit_law(points)) == pytest.approx(astuple(SMALL), rel=0.05)


@pytest.mark.parametrize(
    ("name", "params", "tokens"),
    [("Hoffmann et al. 2022", 40e9, 2.4e12), ("Besiroglu et al. 2024", 70e9, 1.4e12)],
)
def test_the_best_size_for_chinchillas_budget(name: str, params: float, tokens: float) -> None:
    """5.76e23 FLOPs: by their law (figure 4) it is 40B; they trained 70B on 1.4T, as the newer law has it."""
    best = best_size(PUBLISHED[name], SIX_ND, 5.76e23)
    assert best is not None
    assert best.params == pytest.approx(params, rel=0.06)
    assert best.tokens == pytest.approx(tokens, rel=0.06)


@pytest.mark.parametrize("cost", [SIX_ND, Cost(2.0, 0.6), Cost(5e-4, 1.3)])
def test_no_other_size_is_better_for_the_budget(cost: Cost) -> None:
    best = best_size(SMALL, cost, 1e13)
    assert best is not None
    for params in best.params * np.geomspace(0.2, 5, 50):
        assert SMALL.loss(params, 1e13 / cost.per_token(params)) >= best.loss - 1e-12


def test_no_size_is_best_if_larger_models_cost_no_more() -> None:
    assert best_size(SMALL, Cost(6.0, 0.0), 1e12) is None


def test_the_cost_of_a_token_is_a_power_of_the_parameters() -> None:
    points = [Point(n, 100.0, 100 * 4 * n, 100 * 3 * n**0.5, 1.0) for n in (10.0, 40.0, 90.0)]
    assert astuple(cost_of(points, "flops")) == pytest.approx((4.0, 1.0))
    assert astuple(cost_of(points, "seconds")) == pytest.approx((3.0, 0.5))


def test_minima_at_equal_compute_are_where_the_law_has_them() -> None:
    law = PUBLISHED["Besiroglu et al. 2024"]
    points = runs(law, np.geomspace(7e7, 1.6e10, 12), np.geomspace(5e9, 5e11, 9))
    minima = iso_flops(points)
    assert len(minima) >= 3
    for minimum in minima:
        best = best_size(law, SIX_ND, minimum.flops)
        assert best is not None
        assert minimum.params == pytest.approx(best.params, rel=0.15)
        assert minimum.loss == pytest.approx(best.loss, rel=0.01)
    assert iso_flop_exponent(minima) == pytest.approx(law.params_exponent, abs=0.02)
    ends = iso_flop_interval(points)
    assert (
        ends is not None and ends[0] <= law.params_exponent + 0.02 and ends[1] >= law.params_exponent - 0.02
    )


def test_there_is_no_minimum_where_the_largest_size_is_the_best() -> None:
    only_size_matters = Law(1.0, 100.0, 1e-9, 0.3, 0.3)
    points = runs(only_size_matters, SIZES, TOKENS)
    assert iso_flops(points) == [] and iso_flop_exponent([]) is None and iso_flop_interval(points) is None
