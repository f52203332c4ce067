"""What a model reports of itself reaches the log and the metrics."""

from __future__ import annotations

import pytest

from tests.train.runs import Runs, rows

RECURRENT = ["model.recurrent_shared_weights=true", "model.recurrent_depth=3", "log.log_interval=1"]


def test_the_log_has_the_depths_that_were_drawn_and_the_metrics_their_histogram(runs: Runs) -> None:
    fitted = runs(*RECURRENT)
    depths = [float(row["mean_depth"]) for row in rows(fitted)[1:]]  # each the mean of two micro-batches
    histogram = fitted.metrics["recurrent_depth_histogram"]
    assert len(depths) == 20
    assert sum(histogram.values()) == 40
    assert sum(int(depth) * count for depth, count in histogram.items()) == pytest.approx(2 * sum(depths))
    assert len(histogram) > 2
    assert set(histogram) <= {str(depth) for depth in range(1, 7)}


def test_a_model_of_fixed_depth_has_no_histogram(runs: Runs) -> None:
    assert "recurrent_depth_histogram" not in runs("train.max_iters=1").metrics


def test_the_log_has_each_layers_load(runs: Runs) -> None:
    fitted = runs("model.moe=true", "model.moe_num_experts=3", "train.max_iters=6", "log.log_interval=3")
    for row in rows(fitted)[1:]:
        for layer in range(2):
            loads = [float(row[f"moe{layer}_load_{expert}"]) for expert in range(3)]
            assert sum(loads) + float(row[f"moe{layer}_dummy"]) == pytest.approx(2, abs=1e-4)
            assert 0 < float(row[f"moe{layer}_entropy"]) < 1.39  # at most the logarithm of 4


def test_the_log_has_what_learned_stopping_comes_to(runs: Runs) -> None:
    fitted = runs(
        *RECURRENT,
        "model.learned_stopping=true",
        "model.learned_stopping_controller_weight=0.5",
        "model.learned_stopping_target_depth=1.5",
    )
    logged = rows(fitted)[1:]
    for row in logged:
        assert 1 <= float(row["mean_depth"]) < 3
        assert 1 <= float(row["target_depth"]) <= 1.5  # a pass of one step cannot aim higher
        assert 0 <= float(row["stopping_entropy"]) < 1.8  # at most the logarithm of 6
    assert any(float(row["stopping_entropy"]) > 0.1 for row in logged)
    assert any(float(row["controller_loss"]) > 0 for row in logged)
