"""The feed-forward network with each activation, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.model.feedforward import FeedForward, ReLU2, SwiGLU, widths


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def test_relu2_by_hand() -> None:
    assert ReLU2()(torch.tensor([-2.0, 0.0, 0.5, 3.0])).tolist() == [0.0, 0.0, 0.25, 9.0]


def test_swiglu_by_hand() -> None:
    """The first half of the channels, through SiLU, times the second half."""
    y = SwiGLU()(torch.tensor([[1.0, -2.0, 3.0, 5.0]]))
    torch.testing.assert_close(y, torch.tensor([[silu(1) * 3, silu(-2) * 5]]))


@pytest.mark.parametrize(("activation", "before", "after"), [("gelu", 3072, 3072), ("swiglu", 4096, 2048)])
def test_widths_of_gpt2(activation: str, before: int, after: int) -> None:
    """Two matrices of 4 C · C, or three of 8/3 C · C: the same number of parameters."""
    assert widths(768, activation) == (before, after)
    part = FeedForward(768, bias=False, dropout=0.0, activation=activation)
    assert sum(parameter.numel() for parameter in part.parameters()) == 8 * 768**2


def test_swiglus_width_is_rounded_up_to_a_multiple_of_8() -> None:
    assert widths(16, "swiglu") == (96, 48)  # 42.67
    assert widths(3, "swiglu") == (16, 8)  # 8
    assert widths(64, "swiglu") == (352, 176)  # 170.67


@pytest.mark.parametrize(("activation", "expected"), [("relu2", 3 * 0.25), ("swiglu", 3 * silu(0.5) * 2)])
@torch.no_grad()
def test_feed_forward_by_hand(activation: str, expected: float) -> None:
    """One channel is wired through; 0.5 goes in, three times the activation comes out."""
    part = FeedForward(2, bias=True, dropout=0.0, activation=activation)
    for parameter in part.parameters():
        parameter.zero_()
    part.c_fc.weight[0, 0] = 1.0  # hidden channel 0 is x[0]
    if activation == "swiglu":
        part.c_fc.bias[widths(2, "swiglu")[1]] = 2.0  # the value that it gates is 2
    part.c_proj.weight[1, 0] = 3.0
    part.c_proj.bias[0] = -1.0
    y = part(torch.tensor([[[0.5, 9.0]]]))
    torch.testing.assert_close(y, torch.tensor([[[-1.0, expected]]]))
