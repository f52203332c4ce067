"""A mixture of experts in the feed-forward slot of a block (Shazeer et al. 2017).

Tokens are sorted by expert, so that each expert computes one dense slice of them. Besides the experts, the
router can choose a dummy that returns its input and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.model.context import Context
from pipeline.model.feedforward import ACTIVATIONS, widths
from pipeline.model.hooks import Part
from pipeline.model.linear import Linear


class Routing(NamedTuple):
    """The candidates chosen for each token. The last candidate is the dummy."""

    logits: torch.Tensor  # (N, candidates)
    probabilities: torch.Tensor  # (N, candidates)
    chosen: torch.Tensor  # (N, top_k)
    weights: torch.Tensor  # (N, top_k): of the chosen candidates' outputs


class Router(Part):
    """Scores the candidates for each token and picks `top_k` of them; the last candidate is the dummy.

    A chosen expert's output is weighted by its probability. This gives the router a gradient, even with a
    single choice (Fedus et al. 2022). The selection adds a bias to the probabilities. The bias has no
    gradient; it is moved against the load after each step: auxiliary-loss-free balancing (Wang et al. 2024,
    as in DeepSeek-V3). It balances the experts, and holds the dummy at `dummy_share` of all choices (None
    leaves the dummy's share to the router).
    """

    bias: torch.Tensor

    def __init__(
        self,
        n_embd: int,
        candidates: int,
        top_k: int,
        dummy_share: float | None = None,
        bias_update_rate: float = 0.001,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.dummy_share = dummy_share
        self.bias_update_rate = bias_update_rate
        self.scores = Linear(n_embd, candidates)
        self.register_buffer("bias", torch.zeros(candidates))
        self._load: torch.Tensor | None = None  # assignments since the last step

    def forward(self, x: torch.Tensor) -> Routing:
        """Route tokens (N, C)."""
        with torch.autocast(x.device.type, enabled=False):  # routing needs float32
            logits = self.scores(x.float())
        probabilities = logits.softmax(-1)
        chosen = (probabilities.detach() + self.bias).topk(self.top_k, dim=-1).indices
        return Routing(logits, probabilities, chosen, probabilities.gather(-1, chosen))

    def record(self, counts: torch.Tensor) -> None:
        """Add up how many tokens each candidate got, for `after_step`."""
        self._load = counts if self._load is None else self._load + counts

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the selection bias: down for overloaded candidates, up for underused ones."""
        if self._load is None:
            return
        load = self._load.float()
        direction = (load[:-1].mean() - load[:-1]).sign()
        # Centered, because raising all experts together would lower the dummy's share.
        self.bias[:-1] += self.bias_update_rate * (direction - direction.mean())
        if self.dummy_share is not None:
            self.bias[-1] += self.bias_update_rate * (self.dummy_share * load.sum() - load[-1]).sign()
        self._load = None


class StackedLinear(nn.Module):
    """One linear layer per expert, with all weights in one tensor (experts, out, in)."""

    def __init__(self, experts: int, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(experts, out_features)) if bias else None

    def forward(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """(N, in) -> (N, out): the first counts[0] rows go to expert 0, the next counts[1] to expert 1, …"""
        weight: torch.Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        y: torch.Tensor = _GroupedLinear.apply(x, weight, counts)
        if self.bias is not None:
            rows = torch.tensor(counts, device=x.device)
            y = y + self.bias.to(y.dtype).repeat_interleave(rows, dim=0, output_size=sum(counts))
        return y


class Experts(nn.Module):
    """A bank of feed-forward networks."""

    def __init__(self, count: int, n_embd: int, bias: bool, activation: str = "gelu") -> None:
        super().__init__()
        before, after = widths(n_embd, activation)
        self.count = count
        self.c_fc = StackedLinear(count, n_embd, before, bias)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = StackedLinear(count, after, n_embd, bias)

    def forward(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """(N, C) -> (N, C). Rows are sorted by expert; `counts` has the number of rows per expert."""
        return self.c_proj(self.activation(self.c_fc(x, counts)), counts)


class MixtureOfExperts(Part):
    """Sends each token to the experts that the router picks and returns the weighted sum of their outputs.

    If another layer owns `experts`, pass `owns_experts=False`: they are trained, counted and saved there.
    `name` is the prefix of this module's figures in the log.
    """

    eager = ("forward",)  # the number of tokens per expert depends on the data
    eager_recursively = ("_report",)

    def __init__(
        self,
        name: str,
        router: Router,
        experts: Experts,
        dropout: float,
        aux_loss_weight: float = 0.0,
        z_loss_weight: float = 0.0,
        owns_experts: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.router = router
        if owns_experts:
            self.experts = experts
        self._experts = (experts,)  # a tuple, so that it is not registered a second time
        self.aux_loss_weight = aux_loss_weight
        self.z_loss_weight = z_loss_weight
        self.dropout = nn.Dropout(dropout)

    @property
    def idle_params(self) -> int:
        """Parameters owned here but not used for a token; negative if it uses another layer's experts."""
        (experts,) = self._experts
        params = sum(parameter.numel() for parameter in experts.parameters())
        dummy_share = self.router.dummy_share
        if dummy_share is None:
            dummy_share = 1 / (experts.count + 1)
        used = round(params * self.router.top_k * (1 - dummy_share) / experts.count)
        return (params if "experts" in self._modules else 0) - used

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        (experts,) = self._experts
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        routing = self.router(tokens)
        choices = routing.chosen.flatten()  # (N · top_k)
        load = torch.bincount(choices, minlength=experts.count + 1)
        if self.training:
            self.router.record(load)
            self._report(routing, load, context)

        counts = load[:-1].tolist()
        by_expert = choices.argsort(stable=True)[: sum(counts)]  # drops the dummy's choices, which sort last
        token = by_expert // self.router.top_k
        outputs = experts(tokens.index_select(0, token), counts)
        weights = routing.weights.flatten().index_select(0, by_expert)
        for_dummy = routing.weights.masked_fill(routing.chosen != experts.count, 0).sum(-1, keepdim=True)
        mixed = (tokens * for_dummy).index_add(0, token, (outputs * weights[:, None]).to(tokens.dtype))
        return self.dropout(mixed.view(x.shape))

    def _report(self, routing: Routing, load: torch.Tensor, context: Context) -> None:
        probabilities = routing.probabilities
        tokens = len(probabilities)
        report = context.report
        report.add(f"{self.name}_load", load[:-1] / tokens)
        report.add(f"{self.name}_dummy", load[-1] / tokens)
        report.add(f"{self.name}_entropy", torch.special.entr(probabilities.detach()).sum() / tokens)
        if self.aux_loss_weight:
            load_share = load[:-1] / load[:-1].sum().clamp_min(1)
            mean_probability = probabilities[:, :-1].mean(0)
            balance = len(load_share) * (load_share * mean_probability).sum() / mean_probability.sum()
            report.losses.append(self.aux_loss_weight * balance)
        if self.z_loss_weight:
            report.losses.append(self.z_loss_weight * routing.logits.logsumexp(-1).square().mean())


class _GroupedLinear(torch.autograd.Function):
    """x (N, in), weight (groups, out, in), number of rows in each group -> (N, out).

    Forward and backward write slices of one preallocated output, so nothing is concatenated or zeroed.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = list(counts)
        y = x.new_empty(x.shape[0], weight.shape[1])
        for rows, rows_y, matrix in zip(x.split(ctx.counts), y.split(ctx.counts), weight, strict=True):
            torch.mm(rows, matrix.t(), out=rows_y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
        parts = (tensor.split(ctx.counts) for tensor in (x, d_x, gradient.contiguous()))
        for rows, d_rows, d_y, matrix, d_matrix in zip(*parts, weight, d_weight, strict=True):
            torch.mm(d_y, matrix, out=d_rows)
            torch.mm(d_y.t(), rows, out=d_matrix)
        return d_x, d_weight, None
