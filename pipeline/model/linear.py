"""Linear layers whose float32 products run through oneDNN on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# PyTorch sends float32 products to MKL, which reaches half of the rate on CPUs that are not Intel's. The
# operator that its compiler uses calls oneDNN, in true float32 and at full rate on any CPU.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

FEW_ROWS = 64  # for fewer, such as those of a decoding step, oneDNN takes longer to start


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`: (…, in) -> (…, out) for a weight (out, in)."""
    if not _through_onednn(x, weight):
        return F.linear(x, weight, bias)
    differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    y: torch.Tensor = (_OneDNNLinear.apply if differentiable else _product)(x, weight, bias)
    return y


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """By oneDNN, for float32 on a CPU; either factor may be a transposed view."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _weight_gradient(d_y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(out, in), from (rows, out) and (rows, in). oneDNN copies the first factor, so that is the smaller."""
    return _product(d_y.t(), x.t()) if d_y.shape[1] <= x.shape[1] else _product(x.t(), d_y.t()).t()


def _through_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEW_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # the compiler chooses for itself
    )


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_y = gradients[0].flatten(0, -2)
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = _product(d_y, weight.t()).view(x.shape)
        if ctx.needs_input_grad[1]:
            d_weight = _weight_gradient(d_y, x.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            d_bias = d_y.sum(0)
        return d_x, d_weight, d_bias
