"""What the modules of one forward pass share besides the residual stream."""

from __future__ import annotations

import torch

from pipeline.model.cache import KVCache


class Report:
    """Collects auxiliary losses and figures for the log during one forward pass.

    A module that runs several times reports several times; `means` averages its figures. `mean_depth` is the
    number of loop steps taken, averaged over tokens; `loss_scale` multiplies the cross-entropy in the loss.
    What is computed a second time for its gradients has a report that is not `read`, and is counted nowhere.
    """

    def __init__(self, read: bool = True) -> None:
        self.read = read
        self.losses: list[torch.Tensor] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self.mean_depth: torch.Tensor | float = 0.0
        self.loss_scale: torch.Tensor | float = 1.0

    def add(self, name: str, value: torch.Tensor) -> None:
        """Report a figure: a scalar, or a vector with one number per expert."""
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, torch.Tensor]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


class Context:
    """The state of one forward pass over B sequences: KV cache, value embeddings and report.

    `value_embedding` is (B, T, key and value channels). `rows` are the indices of these sequences in the
    batch; None means all of them. `next_only` says that only the last position's output is needed; the layer
    that then computes no other finds `last_only` set.
    """

    def __init__(
        self,
        cache: KVCache | None = None,
        value_embedding: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        report: Report | None = None,
        next_only: bool = False,
    ) -> None:
        self.cache = cache
        self.value_embedding = value_embedding
        self.rows = rows
        self.report = Report() if report is None else report
        self.next_only = next_only
        self.last_only = False

    def select(self, rows: torch.Tensor) -> Context:
        """The same forward pass restricted to the sequences in `rows`."""
        values = self.value_embedding
        return Context(
            self.cache,
            None if values is None else values[rows],
            rows if self.rows is None else self.rows[rows],
            self.report,
        )

    def again(self) -> Context:
        """The same forward pass, computed a second time for its gradients."""
        return Context(self.cache, self.value_embedding, self.rows, Report(read=False), self.next_only)

    def positions(self, T: int) -> slice | torch.Tensor:
        """The positions of this pass over T tokens, counted from where the KV cache began.

        They are (T,), or (B, 1, T) if each sequence has its own.
        """
        if self.cache is None:
            return slice(T)
        positions = self.cache.positions
        return positions if self.rows is None or positions.dim() == 1 else positions[self.rows]

    def own_positions(self, T: int) -> slice | torch.Tensor:
        """The positions of these tokens in each sequence's own text, (T,) or (B, T)."""
        return slice(T) if self.cache is None else self.cache.own_positions
