"""Matrix products are counted as they run, and computed again alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.runtime.rates import Recorder, matrix_rate


def train(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=bias)
    x = torch.randn(3, 5, 6, requires_grad=True)
    (layer(x) @ torch.randn(3, 4, 7)).sum().backward()


def test_flops_are_those_that_pytorch_counts() -> None:
    for bias in (True, False):
        recorder = Recorder()
        with recorder:
            train(bias)
        with FlopCounterMode(display=False) as counter:
            train(bias)
        assert (
            sum(one.flops * number for one, number in recorder.products.items()) == counter.get_total_flops()
        )


def test_equal_products_are_counted_together() -> None:
    one, other = torch.randn(3, 4), torch.randn(4, 5)
    recorder = Recorder()
    with recorder:
        for _ in range(3):
            one @ other
        one.bfloat16() @ other.bfloat16()
    assert sorted(recorder.products.values()) == [1, 3]


def test_the_rate_is_that_of_all_products() -> None:
    recorder = Recorder()
    with recorder:
        train(bias=True)
    assert matrix_rate(recorder.products, wait=lambda: None) > 0
    assert matrix_rate(Recorder().products, wait=lambda: None) == 0
