"""A mixture of experts in the feed-forward slot of a block (Shazeer et al. 2017).

The tokens are sorted by expert, so that each expert computes one dense slice of them. On request the router
can also choose a dummy, which returns its input and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.context import Context
from pipeline.model.dropout import Dropout
from pipeline.model.feedforward import ACTIVATIONS, widths
from pipeline.model.hooks import Part, Total, alone
from pipeline.model.linear import Linear, linear

# An expert's slice is filled up with rows of zeros to a multiple of this, so that there are few shapes:
# oneDNN compiles a kernel for each, which takes longer than the product itself.
SLICE = 32


class Routing(NamedTuple):
    """The candidates chosen for each token: experts, and after them the dummy if there is one."""

    logits: torch.Tensor  # (N, candidates)
    probabilities: torch.Tensor  # (N, candidates)
    chosen: torch.Tensor  # (N, top_k)
    weights: torch.Tensor  # (N, top_k): of the chosen candidates' outputs


class Router(Part):
    """Scores the candidates for each token and picks `top_k` of them: `experts`, and a dummy on request.

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
        experts: int,
        top_k: int,
        dummy: bool = False,
        dummy_share: float | None = None,
        bias_update_rate: float = 0.001,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.top_k = top_k
        self.dummy = dummy
        self.dummy_share = dummy_share
        self.bias_update_rate = bias_update_rate
        self.scores = Linear(n_embd, experts + dummy)
        self.register_buffer("bias", torch.zeros(experts + dummy))
        self._load: torch.Tensor | None = None  # assignments since the last step

    @property
    def experts_per_token(self) -> float:
        """How many experts compute a token, on average; a dummy without a share is taken for one of many."""
        share = 1 / (self.experts + 1) if self.dummy_share is None else self.dummy_share
        return self.top_k * (1 - share) if self.dummy else self.top_k

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
    def after_step(self, total: Total = alone) -> None:
        """Move the selection bias: down for overloaded candidates, up for underused ones."""
        if self._load is None:
            return
        load, experts = total(self._load).float(), slice(self.experts)
        direction = (load[experts].mean() - load[experts]).sign()
        # Centered, because raising all experts together would lower the dummy's share.
        self.bias[experts] += self.bias_update_rate * (direction - direction.mean())
        if self.dummy_share is not None:
            self.bias[-1] += self.bias_update_rate * (self.dummy_share * load.sum() - load[-1]).sign()
        self._load = None


class StackedLinear(nn.Module):
    """The weights of one linear layer per expert, in one tensor (experts, out, in)."""

    def __init__(self, experts: int, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(experts, out_features)) if bias else None

    def grouped(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """(rows, in) -> (rows, out): the first sizes[0] rows go to expert 0, the next sizes[1] to expert 1, …

        In bfloat16. The product leaves the rows after the last expert's as the memory was, and so does its
        gradient: whoever calls this must use neither.
        """
        ends = sizes.cumsum(0)
        y = F.grouped_mm(x, self.weight.to(x.dtype).transpose(1, 2), offs=ends.to(torch.int32))
        if self.bias is None:
            return y
        row = torch.arange(len(x), device=x.device)[:, None]
        is_of = (row < ends) & (row >= ends - sizes)  # (rows, experts)
        y = y + is_of.to(x.dtype) @ self.bias.to(x.dtype)  # its gradient is the same in every run
        return torch.where(row < ends[-1], y, 0)  # or what is left in memory would be in that gradient

    def parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The weight and the bias of each expert."""
        biases = [None] * len(self.weight) if self.bias is None else self.bias.unbind()
        return zip(self.weight.unbind(), biases, strict=True)


class Experts(Part):
    """A bank of feed-forward networks."""

    eager = ("_one_by_one",)  # the number of rows per expert depends on the data

    def __init__(self, count: int, n_embd: int, bias: bool, activation: str = "gelu") -> None:
        super().__init__()
        before, after = widths(n_embd, activation)
        self.count = count
        self.c_fc = StackedLinear(count, n_embd, before, bias)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = StackedLinear(count, after, n_embd, bias)
        self._aligned = all(width % 8 == 0 for width in (n_embd, before, after))

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """(rows, C) -> (rows, C). Rows are sorted by expert; `sizes` (experts) has how many each has.

        After the last expert's rows, what comes out is undefined, and so is the gradient.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if x.dtype == torch.bfloat16 and self._aligned:  # what PyTorch's grouped product can compute
            return self.c_proj.grouped(self.activation(self.c_fc.grouped(x, sizes)), sizes)
        return self._one_by_one(x, sizes)

    def _one_by_one(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Each expert in turn, so that what it computes stays in a CPU's cache. A GPU is asked for sizes."""
        numbers = sizes.tolist()
        *groups, rest = x.split([*numbers, len(x) - sum(numbers)])
        said = [
            linear(self.activation(linear(rows, *fc)), *proj)
            for rows, fc, proj in zip(groups, self.c_fc.parts(), self.c_proj.parts(), strict=True)
        ]
        return torch.cat([*said, rest])


class Slots(NamedTuple):
    """A place for each choice among rows that are sorted by candidate."""

    load: torch.Tensor  # (candidates): how many choices each has
    of_choices: torch.Tensor  # (N · top_k): the row of each choice
    sizes: torch.Tensor  # (experts): the rows of each expert, with those that fill up its slice
    rows: int  # all rows; those after the last expert's are the dummy's or unused


def assign(choices: torch.Tensor, candidates: int, experts: int) -> Slots:
    """A counting sort of the choices (N · top_k) by candidate, the experts before the dummy.

    The number of rows is known without asking the device for the load.
    """
    few = len(choices) < SLICE * experts  # filling up would cost more than it saves
    unit = 1 if few else SLICE
    is_of = choices == torch.arange(candidates, device=choices.device)[:, None]  # (candidates, N · top_k)
    load = is_of.sum(1)
    sizes = (load + (unit - 1)) // unit * unit
    starts = sizes.cumsum(0) - sizes
    rank = is_of.cumsum(1) - 1  # (candidates, N · top_k)
    slots = (rank + starts[:, None]).gather(0, choices[None])[0]
    return Slots(load, slots, sizes[:experts], len(choices) + candidates * (unit - 1))


class MixtureOfExperts(Part):
    """Sends each token to the experts that the router picks and returns the weighted sum of their outputs.

    If another layer owns `experts`, pass `owns_experts=False`: they are trained, counted and saved there.
    `name` is the prefix of this module's figures in the log.
    """

    eager = ("_report",)

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
        self.dropout = Dropout(dropout)

    @property
    def idle_params(self) -> int:
        """Parameters owned here but not used for a token; negative if it uses another layer's experts."""
        (experts,) = self._experts
        params = sum(parameter.numel() for parameter in experts.parameters())
        used = round(params * self.router.experts_per_token / experts.count)
        return (params if "experts" in self._modules else 0) - used

    def borrowed(self) -> Iterator[nn.Parameter]:
        (experts,) = self._experts
        return iter(()) if "experts" in self._modules else experts.parameters()

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        (experts,) = self._experts
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        routing = self.router(tokens)
        choices = routing.chosen.flatten()  # (N · top_k)
        slots = assign(choices, routing.logits.shape[1], experts.count)
        if self.training:
            self._report(routing, slots.load, context)

        heard = tokens.repeat_interleave(self.router.top_k, dim=0)  # (N · top_k, C)
        is_dummy = (choices == experts.count)[:, None] if self.router.dummy else None
        to_experts = heard if is_dummy is None else torch.where(is_dummy, 0, heard)
        rows = heard.new_zeros(slots.rows, x.shape[-1]).index_copy(0, slots.of_choices, to_experts)
        said = experts(rows, slots.sizes).index_select(0, slots.of_choices)
        if is_dummy is not None:
            said = torch.where(is_dummy, heard, said)
        weighted = said.view(*routing.chosen.shape, -1) * routing.weights[..., None]
        return self.dropout(weighted.sum(1, dtype=x.dtype).view(x.shape))

    def _report(self, routing: Routing, load: torch.Tensor, context: Context) -> None:
        report = context.report
        if report.read:
            self.router.record(load)
        experts, tokens = slice(self.router.experts), len(routing.probabilities)
        report.add(f"{self.name}_load", load[experts] / tokens)
        if self.router.dummy:
            report.add(f"{self.name}_dummy", load[-1] / tokens)
        report.add(f"{self.name}_entropy", torch.special.entr(routing.probabilities.detach()).sum() / tokens)
        if self.aux_loss_weight:
            load_share = load[experts] / load[experts].sum().clamp_min(1)
            mean_probability = routing.probabilities[:, experts].mean(0)
            balance = len(load_share) * (load_share * mean_probability).sum() / mean_probability.sum()
            report.losses.append(self.aux_loss_weight * balance)
        if self.z_loss_weight:
            report.losses.append(self.z_loss_weight * routing.logits.logsumexp(-1).square().mean())
