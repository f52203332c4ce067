"""GPT = embedding -> trunk -> head. `build` decides which modules fill these slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.cache import KVCache
from pipeline.model.chunked_loss import chunked_cross_entropy
from pipeline.model.context import Context
from pipeline.model.depth_distribution import DepthDistribution
from pipeline.model.dropout import Dropout
from pipeline.model.halting import LearnedStopping
from pipeline.model.hooks import Part, Total, alone
from pipeline.model.linear import Linear, linear
from pipeline.model.position import Rotary
from pipeline.model.trunk import Trunk


class Embedding(nn.Module):
    """Token embedding plus an optional learned position embedding. Ids (B, T) -> (B, T, C).

    `vte` is a second token embedding that attention mixes into its values; it is passed on in the context.
    """

    def __init__(
        self, wte: nn.Embedding, wpe: nn.Embedding | None, dropout: float, vte: nn.Embedding | None = None
    ) -> None:
        super().__init__()
        self.wte = wte
        self.wpe = wpe
        self.drop = Dropout(dropout)
        self.vte = vte

    def forward(self, ids: torch.Tensor, context: Context) -> torch.Tensor:
        x = self.wte(ids)
        if self.wpe is not None:
            x = x + self.wpe.weight[context.own_positions(ids.shape[1])]
        if self.vte is not None:
            context.value_embedding = self.vte(ids)
        return self.drop(x)


class TiedProjection(nn.Module):
    """Output projection that reuses the token embedding (Press and Wolf 2017).

    (B, T, C) -> (B, T, vocabulary). The embedding owns the matrix: it is trained, counted and saved once.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # a tuple, so that it is not registered a second time

    @property
    def weight(self) -> torch.Tensor:
        return self._embedding[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


class Softcap(nn.Module):
    """Squashes logits smoothly into ± cap with tanh (Gemma Team 2024). Any shape."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(logits / self.cap)


class Head(nn.Module):
    """Final norm and projection to the vocabulary. (B, T, C) -> logits (B, T, vocabulary)."""

    def __init__(
        self, ln_f: nn.Module, lm_head: TiedProjection | Linear, softcap: Softcap | None = None
    ) -> None:
        super().__init__()
        self.ln_f = ln_f
        self.lm_head = lm_head
        self.softcap = softcap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(self.ln_f(x))
        return logits if self.softcap is None else self.softcap(logits)

    def loss(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats for targets (B, T)."""
        return cross_entropy(self(x), targets)


class ChunkedHead(Head):
    """A head for a large vocabulary: its loss never has the logits of all tokens in memory at once."""

    def loss(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x, cap = self.ln_f(x).flatten(0, 1), None if self.softcap is None else self.softcap.cap
        return chunked_cross_entropy(x, self.lm_head.weight, targets.flatten(), cap)


class Loss(NamedTuple):
    """The training loss, its cross-entropy part, and figures for the log."""

    total: torch.Tensor  # what training minimizes: scaled cross-entropy plus auxiliary losses
    cross_entropy: torch.Tensor  # nats per token
    figures: dict[str, torch.Tensor]


class GPT(nn.Module):
    """A decoder-only language model for sequences of at most `block_size` tokens."""

    def __init__(self, embed: Embedding, trunk: Trunk, head: Head, block_size: int) -> None:
        super().__init__()
        self.embed = embed
        self.trunk = trunk
        self.head = head
        self.block_size = block_size
        # A tuple, so that they are not registered a second time.
        self._called_after_step = tuple(
            part
            for part in self.modules()
            if isinstance(part, Part) and type(part).after_step is not Part.after_step
        )

    @property
    def depth(self) -> int:
        """Default number of steps of the trunk: layers, or applications of the recurrent block."""
        return self.trunk.depth

    @property
    def depth_distribution(self) -> DepthDistribution | None:
        """The distribution that training draws depths from; None if the depth is fixed."""
        return self.trunk.distribution

    @property
    def depths(self) -> Sequence[int]:
        """The depths (numbers of steps) at which `logits_by_depth` gives logits."""
        return self.trunk.depths

    @property
    def slides(self) -> bool:
        """Whether the KV cache can slide: attention sees relative positions, and no position is learned."""
        return self.embed.wpe is None

    @property
    def stopping(self) -> LearnedStopping | None:
        """The learned halting policy, if the model has one."""
        return next((part for part in self.modules() if isinstance(part, LearnedStopping)), None)

    def forward(
        self,
        ids: torch.Tensor,
        cache: KVCache | None = None,
        depth: int | None = None,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor | Loss:
        """Logits (B, T, vocabulary) for ids (B, T), which continue the sequences in `cache`.

        With `targets` (B, T), returns the Loss instead. A recurrent model takes `depth` steps; the default
        is the depth it was trained for.
        """
        if targets is None:
            return self.head(self.hidden_states(ids, cache, depth))
        context = Context(cache)
        nats = self.head.loss(self._read(ids, context, depth), targets)
        report = context.report
        total = nats * report.loss_scale
        for part in report.losses:
            total = total + part
        return Loss(total, nats.detach(), report.means())

    def hidden_states(
        self, ids: torch.Tensor, cache: KVCache | None = None, depth: int | None = None
    ) -> torch.Tensor:
        """The input of `head`, (B, T, C), for ids (B, T), which continue the sequences in `cache`.

        The head is expensive with a large vocabulary; callers can apply it to only the positions they need.
        """
        return self._read(ids, Context(cache), depth)

    def next_logits(
        self, ids: torch.Tensor, cache: KVCache | None = None, depth: int | None = None
    ) -> torch.Tensor:
        """Logits (B, vocabulary) for the token after ids (B, T)."""
        return self.head(self._read(ids, Context(cache, next_only=True), depth)[:, -1])

    def logits_by_depth(self, ids: torch.Tensor, last: int = 0) -> Iterator[torch.Tensor]:
        """Logits (B, T, vocabulary) after each number of steps in `depths`; of the `last` positions, 0: all.

        Each residual stream goes through the model's final norm and head ("logit lens", nostalgebraist 2020).
        """
        context = Context()
        for state in self.trunk.readings(self._embed(ids, context), context):
            yield self.head(state[:, -last:])

    def logits_and_mean_depth(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Logits (B, T, vocabulary), and the number of loop steps averaged over tokens."""
        context = Context()
        logits = self.head(self._read(ids, context, None))
        return logits, context.report.mean_depth

    def count_anew(self, cache: KVCache) -> None:
        """Count the positions of a full cache from `block_size` less on. Do so before 2 x `block_size`."""
        rotary = next((part for part in self.modules() if isinstance(part, Rotary)), None)
        cache.count_anew(None if rotary is None else rotary.turn_back)

    def after_step(self, total: Total = alone) -> None:
        """Call `after_step` of every part; do this after each optimizer step."""
        for part in self._called_after_step:
            part.after_step(total)

    def num_params(self, positions: bool = True) -> int:
        """Number of parameters, with tied ones counted once.

        `positions=False` leaves out the position embeddings, as nanoGPT does.
        """
        total = sum(parameter.numel() for parameter in self.parameters())
        wpe = self.embed.wpe
        return total if positions or wpe is None else total - wpe.weight.numel()

    def flops_per_token(self) -> int:
        """Forward and backward FLOPs per token (PaLM, Chowdhery et al. 2022, appendix B).

        A block counts once per application. An expert counts in proportion to the share of tokens that
        choose it when the load is balanced.
        """
        vocab_size, width = self.embed.wte.weight.shape
        blocks = self.trunk.blocks()
        matrices = sum(map(active_params, blocks)) + active_params(self.head.ln_f) + vocab_size * width
        return 6 * matrices + 12 * len(blocks) * width * self.block_size

    def _read(self, ids: torch.Tensor, context: Context, depth: int | None) -> torch.Tensor:
        x: torch.Tensor = self.trunk(self._embed(ids, context), context, depth)
        if context.cache is not None:
            context.cache.advance(ids.shape[1])
        return x

    def _embed(self, ids: torch.Tensor, context: Context) -> torch.Tensor:
        cache, length = context.cache, ids.shape[1]
        assert length <= self.block_size, f"{length} tokens, but block_size is {self.block_size}"
        if cache is not None:
            assert self.slides or cache.length + length <= self.block_size, (
                "the KV cache is full: learned positions need a new one for the shifted window"
            )
            cache.begin(length, ids.device)
        x: torch.Tensor = self.embed(ids, context)
        return x


def active_params(part: nn.Module) -> int:
    """Number of a module's parameters that are used for one token."""
    idle = sum(module.idle_params for module in part.modules() if isinstance(module, Part))
    return sum(parameter.numel() for parameter in part.parameters()) - idle


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats between logits (B, T, vocabulary) and targets (B, T)."""
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction=reduction)
