"""Cross-entropy for a large vocabulary, without the logits of all tokens in memory at once."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.model.linear import linear

CHUNKS = 8  # at most: each adds to the gradient of the weight, which is large
TOKENS = 512  # in a chunk at least: a product with fewer rows is slower


def chunked_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None = None
) -> torch.Tensor:
    """Mean cross-entropy in nats between x (N, C) times the transpose of `weight` (V, C), and targets (N).

    Logits are squashed to ± `cap` if there is one. Their gradient is known as soon as they are, so each chunk
    of them leaves only its share in the gradients of x and of `weight`, and nothing is computed twice.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        if not differentiable:
            return _nats(x, weight.to(x.dtype), targets, cap)
        nats: torch.Tensor = _ChunkedCrossEntropy.apply(x, weight, targets, cap)
        return nats


def _nats(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None) -> torch.Tensor:
    size = chunk_size(len(x))
    chunks = zip(x.split(size), targets.split(size), strict=True)
    sums = [_log_softmax(rows, weight, cap)[0].gather(1, ids[:, None]).sum() for rows, ids in chunks]
    return -torch.stack(sums).sum() / len(targets)


def chunk_size(tokens: int) -> int:
    """How many of so many tokens are in a chunk."""
    return max(TOKENS, -(-tokens // CHUNKS))


def _log_softmax(
    x: torch.Tensor, weight: torch.Tensor, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (N, V) in float32, and the logits divided by `cap` and squashed, if there is one."""
    logits = linear(x, weight)
    if cap is None:
        return logits.log_softmax(-1, dtype=torch.float32), None
    squashed = (logits.float() / cap).tanh_()
    return (cap * squashed).log_softmax(-1), squashed


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        low = weight.to(x.dtype)
        total = x.new_zeros((), dtype=torch.float32)
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        size = chunk_size(len(x))
        for start in range(0, len(x), size):
            chunk = slice(start, start + size)
            rows, ids = x[chunk], targets[chunk, None]
            log_probabilities, squashed = _log_softmax(rows, low, cap)
            total -= log_probabilities.gather(1, ids).sum()
            # The gradient is divided by the number of tokens at the end: in float16 it would vanish.
            if torch.compiler.is_compiling():  # one kernel computes all of this; a scatter would split it
                is_target = torch.arange(len(low), device=ids.device) == ids
                d_logits = log_probabilities.exp() - is_target.float()
            else:
                d_logits = log_probabilities.exp_()
                d_logits.scatter_add_(1, ids, d_logits.new_full(ids.shape, -1.0))
            if squashed is not None:
                d_logits *= squashed.square_().neg_().add_(1)
            d_logits = d_logits.to(x.dtype)
            d_x[chunk] = linear(d_logits, low.t())
            d_weight += linear(d_logits.t(), rows.t())
        ctx.save_for_backward(d_x, d_weight)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_x, d_weight = ctx.saved_tensors
        scale = gradients[0] / len(d_x)
        return d_x * scale, d_weight * scale, None, None
