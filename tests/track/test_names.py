"""A figure has the same name in all trackers."""

from __future__ import annotations

import math

import pytest

from pipeline.track.names import named


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("train_loss", "train/loss"),
        ("val_bpb", "val/bpb"),
        ("lr", "lr"),
        ("grad_norm", "train/grad_norm"),
        ("tokens_per_second", "train/tokens_per_second"),
        ("mfu", "train/mfu"),
        ("stopping_entropy", "stopping/entropy"),
        ("controller_loss", "stopping/controller_loss"),
        ("target_depth", "stopping/target_depth"),
        ("mean_depth", "recurrence/mean_depth"),
        ("moe11_load_3", "moe/11/load_3"),
        ("lambada_perplexity", "zeroshot/lambada/perplexity"),
        ("health/grad_norm/h.0.attn", "health/grad_norm/h.0.attn"),
    ],
)
def test_a_column_of_the_log_is_named_by_what_it_is_about(column: str, name: str) -> None:
    assert named({"step": 7, column: 2.5}) == {name: 2.5}


def test_perplexity_is_shown_with_the_loss() -> None:
    assert named({"step": 7, "val_loss": 2.0}) == {"val/loss": 2.0, "val/perplexity": math.exp(2.0)}
    assert math.isfinite(named({"step": 7, "val_loss": 1e4})["val/perplexity"])


def test_what_was_not_measured_is_not_shown() -> None:
    assert named({"step": 0, "train_loss": None}) == {}
