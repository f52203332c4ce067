"""The plan of docs/scaling.md is arithmetic that can be done by hand."""

from __future__ import annotations

import pytest

from pipeline.report.scaling_plan import RATES, Plan, Rates, scaling_plan


def test_a_plan_by_hand() -> None:
    """3.6 billion tokens at 100,000 a second are 10 GPU hours; at 0.5 s a million, 1,800 s of a CPU."""
    plan = Plan(3_600_000_000, 8, Rates(tokens_per_second=100_000, tokenizing=0.5))
    assert (plan.gpu_hours, plan.hours, plan.cpu_hours) == pytest.approx((10, 1.25, 0.5))
    assert plan.shard_bytes == 7_200_000_000


def test_nanogpts_own_training_takes_its_four_days() -> None:
    assert Plan(600_000 * 491_520, 8, RATES).hours == pytest.approx(4 * 24)


def test_other_rates_give_another_table() -> None:
    slow = scaling_plan(Rates(RATES.tokens_per_second / 2, RATES.tokenizing))
    rows = [[cell.strip() for cell in row.split("|")] for row in slow.splitlines()]
    assert rows[2][1:5] == ["1B", "1 GPU", "5.2", "5.2"] and rows[4][6] == "200 GB"
