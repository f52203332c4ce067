"""Scaled dot-product attention, with a kernel of our own where PyTorch's is slow."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from pipeline.model.dropout import kept


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention`, for queries, keys and values (B, heads, T, head size); same shape."""
    if has_torch_function((q,)):  # whoever observes a model sees attention here
        seen: torch.Tensor = handle_torch_function(
            attend, (q,), q, k, v, mask, dropout=dropout, is_causal=is_causal
        )
        return seen
    if is_causal and _products_are_faster(q, dropout):
        y: torch.Tensor = _CausalAttention.apply(q, k, v, dropout)
        return y
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


def keeps_scores(device: torch.device, dtype: torch.dtype, length: int, dropout: float) -> bool:
    """Whether plain matrix products beat PyTorch's kernels; they keep the scores of all pairs in memory.

    On a CPU the fused kernel's backward pass takes five times as long in bfloat16 as the products do. It has
    no dropout, and what PyTorch does instead keeps the scores too.
    """
    return device.type == "cpu" and (dropout > 0 or (dtype == torch.bfloat16 and length <= 1024))


def _products_are_faster(q: torch.Tensor, dropout: float) -> bool:
    return keeps_scores(q.device, q.dtype, q.shape[2], dropout) and not torch.compiler.is_compiling()


@lru_cache(maxsize=8)
def _causal_mask(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, T, T): 0 for the keys that a query sees, -inf for those after it."""
    return torch.full((1, length, length), -math.inf, dtype=dtype).triu(1)


class _CausalAttention(torch.autograd.Function):
    """Causal attention as batched matrix products, on a CPU."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        shape = q.shape
        q, k, v = (x.reshape(-1, *shape[2:]) for x in (q, k, v))  # (B · heads, T, head size)
        scores = torch.baddbmm(_causal_mask(shape[2], q.dtype), q, k.mT, alpha=shape[3] ** -0.5)
        weights = scores.softmax(-1)
        mask = kept(weights, dropout) if dropout else None
        ctx.save_for_backward(q, k, v, weights, mask)
        return torch.bmm(weights if mask is None else weights * mask, v).view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights, mask = ctx.saved_tensors
        shape = gradients[0].shape
        d_y = gradients[0].reshape(q.shape)
        d_v = torch.bmm((weights if mask is None else weights * mask).mT, d_y)
        d_weights = torch.bmm(d_y, v.mT)
        if mask is not None:
            d_weights *= mask
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_scores *= q.shape[-1] ** -0.5
        d_q, d_k = torch.bmm(d_scores, k), torch.bmm(d_scores.mT, q)
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None
