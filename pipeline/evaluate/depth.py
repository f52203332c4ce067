"""The depth curve: what a model's validation loss is after each of its steps, as a table and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluate.evaluation import Evaluation
from pipeline.files import write_text


@dataclass(frozen=True)
class Baseline:
    """A horizontal line in the picture; in bits per byte, because it may have counted other tokens."""

    name: str
    bits_per_byte: float

    def loss_per_token_of(self, evaluation: Evaluation) -> float:
        """Nats per token, if the text had been cut into the tokens of `evaluation`."""
        return self.bits_per_byte * math.log(2) * evaluation.bytes / evaluation.tokens


def write_table(path: Path, curve: Sequence[Evaluation]) -> None:
    """CSV with the columns depth (1, 2, …), val_loss (nats per token), perplexity and val_bpb."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["depth", "val_loss", "perplexity", "val_bpb"])
    for depth, point in enumerate(curve, start=1):
        writer.writerow([depth, f"{point.loss:.6f}", f"{point.perplexity:.4f}", f"{point.bits_per_byte:.6f}"])
    write_text(path, text.getvalue())


def draw(path: Path, curve: Sequence[Evaluation], baselines: Sequence[Baseline], title: str) -> None:
    """PNG of validation loss over depth, with the baselines as horizontal lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    losses = [point.loss for point in curve]
    depths = range(1, len(losses) + 1)
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colors = iter(plt.get_cmap("tab10").colors[1:])  # type: ignore[attr-defined]
    for baseline in sorted(baselines, key=lambda line: -line.bits_per_byte):
        loss = baseline.loss_per_token_of(curve[-1])
        axes.axhline(
            loss,
            color=next(colors, "gray"),
            linestyle="--",
            linewidth=1,
            label=f"{baseline.name}: {loss:.3f}",
        )
    axes.plot(
        depths, losses, marker="o", linewidth=2, label=f"model: {losses[-1]:.3f} at depth {len(losses)}"
    )
    for depth, loss in zip(depths, losses, strict=True):
        if len(losses) <= 16:
            axes.annotate(
                f"{loss:.3f}",
                (depth, loss),
                textcoords="offset points",
                xytext=(0, 8),
                ha="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
    axes.set_xlabel("depth (layers applied before the final norm and head)")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.08, y=0.08)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    temporary.replace(path)
