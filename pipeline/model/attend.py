"""Scaled dot-product attention, with a kernel of our own where PyTorch's is slow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from pipeline.model.dropout import kept

BLOCK = 128  # queries whose scores are one product


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention`, for queries, keys and values (B, heads, T, head size); same shape.

    Groups of heads may share those of keys and values, which are then fewer.
    """
    if has_torch_function((q,)):  # whoever observes a model sees attention here
        seen: torch.Tensor = handle_torch_function(
            attend, (q,), q, k, v, mask, dropout=dropout, is_causal=is_causal
        )
        return seen
    if is_causal and _products_are_faster(q, dropout):
        y: torch.Tensor = _CausalAttention.apply(q, for_each_head(k, q), for_each_head(v, q), dropout)
        return y
    if not _kernel_has_groups(q, mask):
        k, v = for_each_head(k, q), for_each_head(v, q)
    grouped = k.shape[1] < q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=grouped
    )


def for_each_head(shared: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Keys or values with as many heads as the queries."""
    groups = q.shape[1] // shared.shape[1]
    return shared if groups == 1 else shared.repeat_interleave(groups, dim=1)


def _kernel_has_groups(q: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether the kernel that PyTorch takes knows of groups: the CPU's, and on a GPU FlashAttention."""
    return q.device.type == "cpu" or (
        q.device.type == "cuda" and mask is None and q.dtype in (torch.float16, torch.bfloat16)
    )


def scores_kept(device: torch.device, dtype: torch.dtype, length: int, dropout: float) -> float:
    """How many scores a query keeps in memory on average; none where PyTorch's kernel is the faster one."""
    if not _keeps_scores(device, dtype, length, dropout):
        return 0.0
    return sum((own.stop - own.start) * seen.stop for own, seen in _blocks(length)) / length


def _keeps_scores(device: torch.device, dtype: torch.dtype, length: int, dropout: float) -> bool:
    """Whether plain matrix products beat PyTorch's kernels; they keep the scores in memory.

    On a CPU the fused kernel's backward pass takes five times as long in bfloat16 as the products do. It has
    no dropout, and what PyTorch does instead keeps the scores too.
    """
    return device.type == "cpu" and (dropout > 0 or (dtype == torch.bfloat16 and length <= 1024))


def _products_are_faster(q: torch.Tensor, dropout: float) -> bool:
    return _keeps_scores(q.device, q.dtype, q.shape[2], dropout) and not torch.compiler.is_compiling()


@lru_cache(maxsize=8)
def _causal_mask(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, T, T): 0 for the keys that a query sees, -inf for those after it."""
    return torch.full((1, length, length), -math.inf, dtype=dtype).triu(1)


class _CausalAttention(torch.autograd.Function):
    """Causal attention as batched matrix products, on a CPU.

    A block of queries is multiplied with the keys up to its last one only: of a long context, half the work.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        shape = q.shape
        q, k, v = (x.reshape(-1, *shape[2:]) for x in (q, k, v))  # (B · heads, T, head size)
        y = torch.empty_like(q)
        causal = _causal_mask(shape[2], q.dtype)
        kept_weights = []
        for own, seen in _blocks(shape[2]):
            scores = torch.baddbmm(causal[:, own, seen], q[:, own], k[:, seen].mT, alpha=shape[3] ** -0.5)
            weights = scores.softmax(-1)
            mask = kept(weights, dropout) if dropout else None
            torch.bmm(weights if mask is None else weights * mask, v[:, seen], out=y[:, own])
            kept_weights += [weights, mask]
        ctx.save_for_backward(q, k, v, *kept_weights)
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept_weights = ctx.saved_tensors
        shape = gradients[0].shape
        d_y = gradients[0].reshape(q.shape)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (own, seen), weights, mask in zip(
            _blocks(shape[2]), kept_weights[::2], kept_weights[1::2], strict=True
        ):
            used = weights if mask is None else weights * mask
            d_v[:, seen].baddbmm_(used.mT, d_y[:, own])
            d_weights = torch.bmm(d_y[:, own], v[:, seen].mT)
            if mask is not None:
                d_weights *= mask
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_scores *= q.shape[-1] ** -0.5
            torch.bmm(d_scores, k[:, seen], out=d_q[:, own])
            d_k[:, seen].baddbmm_(d_scores.mT, q[:, own])
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None


def _blocks(length: int) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that they see."""
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        yield slice(start, end), slice(end)
