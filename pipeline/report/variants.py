"""A picture that compares variants of a model: which is best, by how much, and what each step adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.depth import DepthCurve
from pipeline.report.labels import COLORS, plain, visible
from pipeline.report.png import save_picture

MARKERS = "os^DvPX"  # of the variants beyond the number of colours, a marker for each round of them


def draw_variants(path: Path, curves: Sequence[DepthCurve], title: str) -> None:
    """Draw a PNG of two panels: the variants' final losses, the best first, and their losses over depth.

    Bars of the left panel and bands of the right one go from the lowest to the highest of the seeds.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    ordered = sorted(curves, key=lambda curve: curve.final.loss)
    size = (12, 2.5 + 0.32 * max(6, len(ordered)))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", width_ratios=(4, 5))
    for row, curve in enumerate(ordered):
        look = {"color": COLORS[row % len(COLORS)], "marker": MARKERS[row // len(COLORS) % len(MARKERS)]}
        _draw_final(left, row, curve, look)
        _draw_depths(right, curve, look)
    left.set_yticks(range(len(ordered)), [curve.name for curve in ordered])
    left.invert_yaxis()
    left.margins(x=0.25, y=0.06)
    left.set_xlabel("validation loss (nats per token)")
    seeds = max(len(curve.seeds) for curve in ordered)
    left.set_title(
        "final loss" + (f": mean of {seeds} seeds, bar from lowest to highest" if seeds > 1 else "")
    )
    units = list(dict.fromkeys(curve.unit for curve in ordered))
    right.set_xlabel(f"depth ({', or '.join(units)}); ring: trained depth")
    right.set_ylabel("validation loss (nats per token)")
    right.set_title("loss by depth")
    right.set_ylim(*visible([point.loss for curve in ordered for point in curve.points.values()], []))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.title.set_fontsize(10)
        plain(axes)
    figure.suptitle(title)
    save_picture(figure, path)


def _draw_final(axes: Any, row: int, curve: DepthCurve, look: dict[str, Any]) -> None:
    losses = [seed.final.loss for seed in curve.seeds] or [curve.final.loss]
    axes.plot([min(losses), max(losses)], [row, row], color=look["color"], linewidth=4, alpha=0.4)
    axes.plot(curve.final.loss, row, **look, linestyle="none")
    axes.annotate(
        f"{curve.final.loss:.3f}",
        (max(losses), row),
        (8, 0),
        textcoords="offset points",
        fontsize=9,
        va="center",
    )


def _draw_depths(axes: Any, curve: DepthCurve, look: dict[str, Any]) -> None:
    depths = list(curve.points)
    axes.plot(depths, [point.loss for point in curve.points.values()], **look, markersize=4, label=curve.name)
    if curve.seeds:
        each = [[seed.points[depth].loss for seed in curve.seeds] for depth in depths]
        axes.fill_between(
            depths, list(map(min, each)), list(map(max, each)), color=look["color"], alpha=0.2, lw=0
        )
    if curve.trained_depth < depths[-1]:
        trained = curve.points[curve.trained_depth].loss
        ring = {"markersize": 11, "fillstyle": "none", "markeredgewidth": 1.5}
        axes.plot(curve.trained_depth, trained, **(look | ring))
