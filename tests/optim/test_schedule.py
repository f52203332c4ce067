"""The learning rate follows nanoGPT's schedule; the values are worked out by hand."""

from __future__ import annotations

import pytest

from pipeline.optim.build import build_schedule
from tests import tiny

NANOGPT = [
    "train.learning_rate=6e-4",
    "train.min_lr=6e-5",
    "train.warmup_iters=2000",
    "train.lr_decay_iters=600000",
]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 6e-4 / 2001),  # never zero: the first step counts
        (999, 6e-4 * 1000 / 2001),
        (1999, 6e-4 * 2000 / 2001),
        (2000, 6e-4),  # the peak
        (2000 + 598_000 // 4, 6e-5 + 5.4e-4 * (2 + 2**0.5) / 4),  # (1 + cos 45°) / 2
        (301_000, (6e-4 + 6e-5) / 2),  # half way: cos 90° = 0
        (600_000, 6e-5),
        (10_000_000, 6e-5),
    ],
)
def test_warmup_cosine_and_floor(step: int, expected: float) -> None:
    assert build_schedule(tiny.params(*NANOGPT).train)(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step", [0, 5, 10**6])
def test_without_decay_the_rate_is_constant(step: int) -> None:
    assert build_schedule(tiny.params(*NANOGPT, "train.decay_lr=false").train)(step) == 6e-4


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.01 / 3), (1, 0.02 / 3), (2, 0.01), (11, 0.01), (12, 0.01), (16, 0.0055), (20, 0.001), (99, 0.001)],
)
def test_warmup_stable_decay(step: int, expected: float) -> None:
    train = tiny.params("train.cooldown_share=0.4").train
    assert build_schedule(train)(step) == pytest.approx(expected, rel=1e-12)


def test_until_the_cooldown_the_length_of_a_run_does_not_matter() -> None:
    short, long = (
        build_schedule(tiny.params("train.cooldown_share=0.25", f"train.lr_decay_iters={steps}").train)
        for steps in (20, 1000)
    )
    assert [short(step) for step in range(15)] == [long(step) for step in range(15)]


def test_warmup_may_last_until_the_end_of_the_decay() -> None:
    train = tiny.params("train.warmup_iters=20", "train.lr_decay_iters=20").train
    rates = [build_schedule(train)(step) for step in range(22)]
    assert rates[19] == pytest.approx(0.01 * 20 / 21)
    assert rates[20:] == [0.001, 0.001]
