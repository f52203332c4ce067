"""Depth curves as CSV tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.depth import Baseline, DepthCurve
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import StoppingPoint
from pipeline.report.png import save_picture
from pipeline.report.tables import write_csv

FIGURES = ("val_loss", "perplexity", "val_bpb")  # nats per token, exp of that, bits per byte


def write_table(path: Path, curve: DepthCurve) -> None:
    """CSV with the columns depth (1, 2, …), val_loss, perplexity and val_bpb."""
    rows = ([depth, *_figures(point)] for depth, point in curve.points.items())
    write_csv(path, ["depth", *FIGURES], rows)


def write_tables(path: Path, curves: Sequence[DepthCurve]) -> None:
    """CSV with the columns variant, depth, val_loss, perplexity and val_bpb."""
    rows = (
        [curve.name, depth, *_figures(point)] for curve in curves for depth, point in curve.points.items()
    )
    write_csv(path, ["variant", "depth", *FIGURES], rows)


def write_stopping(path: Path, curve: DepthCurve) -> None:
    """CSV with the columns threshold, mean_depth, val_loss, perplexity and val_bpb.

    It has no rows for a model without learned stopping.
    """
    rows = (
        [point.threshold, f"{point.mean_depth:.4f}", *_figures(point.evaluation)] for point in curve.stopping
    )
    write_csv(path, ["threshold", "mean_depth", *FIGURES], rows)


def _figures(point: Evaluation) -> list[str]:
    return [f"{point.loss:.6f}", f"{point.perplexity:.4f}", f"{point.bits_per_byte:.6f}"]


def draw(
    path: Path,
    curves: Sequence[DepthCurve],
    baselines: Sequence[Baseline],
    title: str,
    model: str | None = None,
) -> None:
    """Draw a PNG of validation loss over depth, with the baselines as horizontal lines.

    If a curve goes beyond the depth that its model was trained for, a ring marks that depth. Diamonds are the
    results of learned stopping at their mean depth, labeled with their thresholds; the filled one is at the
    model's own threshold. `model` is the sha256 of the weights that the picture is of.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    alone = len(curves) == 1
    figure, axes = plt.subplots(figsize=(8, 5) if alone else (10, 6), layout="constrained")
    palette = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    colors = [*palette[::2], *palette[1::2]]  # strong colors first
    for index, baseline in enumerate(sorted(baselines, key=lambda line: -line.bits_per_byte)):
        loss = baseline.loss_per_token_of(curves[0].final)
        color = colors[len(curves) + index] if len(curves) + index < 10 else "gray"
        label = f"{baseline.name}: {loss:.3f}"
        axes.axhline(loss, color=color, linestyle="--", linewidth=1, label=label)
    for index, curve in enumerate(curves):
        color = colors[index % len(colors)]
        _draw_curve(axes, curve, color, numbers=alone and len(curve.points) <= 16 and not curve.stopping)
    if any(curve.trained_depth < max(curve.points) for curve in curves):
        label = "trained depth"
        axes.plot([], [], "o", markersize=9, fillstyle="none", color="gray", label=label)
    for curve in curves:
        _name_thresholds(axes, curve)  # last, because the axes' limits decide which labels overlap
    units = list(dict.fromkeys(curve.unit for curve in curves))
    axes.set_xlabel(f"depth ({', or '.join(units)})")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.08, y=0.08)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save_picture(figure, path, model=model)


def _draw_curve(axes: Any, curve: DepthCurve, color: Any, numbers: bool) -> None:
    depths, losses = list(curve.points), [point.loss for point in curve.points.values()]
    trained = (curve.trained_depth, curve.points[curve.trained_depth].loss)
    name = curve.name if curve.own_stopping is None else f"{curve.name}, never stopping"
    label = f"{name}: {trained[1]:.3f} at depth {trained[0]}"
    axes.plot(depths, losses, marker="o", linewidth=2, color=color, label=label)
    if trained[0] < depths[-1]:
        axes.plot(*trained, marker="o", markersize=12, fillstyle="none", markeredgewidth=1.5, color=color)
    if numbers:
        for depth, loss in zip(depths, losses, strict=True):
            axes.annotate(
                f"{loss:.3f}",
                (depth, loss),
                textcoords="offset points",
                xytext=(0, 10),
                ha="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
    if curve.stopping:
        _draw_stopping(axes, curve, color)


def _draw_stopping(axes: Any, curve: DepthCurve, color: Any) -> None:
    diamonds = {"marker": "D", "markersize": 7, "color": color}
    places = [(point.mean_depth, point.evaluation.loss) for point in curve.stopping]
    label = f"{curve.name}, stopping by threshold"
    axes.plot(*zip(*places, strict=True), **diamonds, linestyle=":", markerfacecolor="white", label=label)
    if curve.own_stopping is not None:
        depth, loss = curve.own_stopping.mean_depth, curve.own_stopping.evaluation.loss
        label = f"{curve.name}, stopping above {curve.threshold:g}: {loss:.3f} at mean depth {depth:.2f}"
        axes.plot(depth, loss, **diamonds, linestyle="none", label=label)


def _name_thresholds(axes: Any, curve: DepthCurve) -> None:
    bottom, top = axes.get_ylim()
    nearby: dict[tuple[float, int], list[StoppingPoint]] = {}  # share a label, or labels would overlap
    for point in (point for point in curve.stopping if math.isfinite(point.evaluation.loss)):
        height = round(50 * (point.evaluation.loss - bottom) / (top - bottom))
        nearby.setdefault((round(point.mean_depth, 1), height), []).append(point)
    for points in nearby.values():
        names = (f"{point.threshold:g}" for point in points)
        axes.annotate(
            ", ".join(names),
            (points[0].mean_depth, points[0].evaluation.loss),
            textcoords="offset points",
            xytext=(3, 8),
            rotation=45,
            rotation_mode="anchor",
            fontsize=8,
        )
