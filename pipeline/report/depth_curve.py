"""The depth curve as CSV tables and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.depth import Baseline, DepthCurve
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import StoppingPoint
from pipeline.report.labels import COLORS, Label, draw_baselines, outside, plain, put_labels, visible
from pipeline.report.png import save_picture
from pipeline.report.tables import write_csv

MOST_NUMBERS = 16  # points of a curve that have their loss beside them
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


def write_lines(path: Path, lines: Mapping[str, float], ends: Mapping[str, tuple[int, int]]) -> None:
    """CSV of horizontal lines for the plots of DVC, two rows for each: baseline, loss, and where it ends.

    `ends` has the first and the last value of each horizontal axis, such as depth. The last row of a line
    also has the text to show beside it.
    """
    rows = [
        [name, f"{loss:.6f}", *(pair[end] for pair in ends.values()), f"{name} {loss:.3f}" if end else ""]
        for name, loss in lines.items()
        for end in (0, 1)
    ]
    write_csv(path, ["baseline", "val_loss", *ends, "label"], rows)


def _figures(point: Evaluation) -> list[str]:
    return [f"{point.loss:.6f}", f"{point.perplexity:.4f}", f"{point.bits_per_byte:.6f}"]


def draw(
    path: Path, curve: DepthCurve, baselines: Sequence[Baseline], title: str, model: str | None = None
) -> None:
    """Draw a PNG of validation loss over depth, with the baselines as horizontal lines.

    The axis shows what the model reaches and the baselines near that; what lies outside is named under the
    title. If the curve goes beyond the depth that the model was trained for, a line marks that depth.
    Diamonds are the results of learned stopping at their mean depth, labeled with their thresholds; the
    filled one is at the model's own threshold. `model` is the sha256 of the weights that the picture is of.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    lines = losses_of(baselines, curve)
    low, high = limits(curve, lines)
    axes.set_ylim(low, high)
    _draw_curve(axes, curve)
    axes.margins(x=0.08)
    axes.set_xlim(left=max(0.5, axes.get_xlim()[0]))  # there is no depth 0
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    labels = [_label_of(curve), *draw_baselines(axes, lines, high)]
    if curve.stopping:
        _name_thresholds(axes, curve)
        axes.legend(fontsize=8, loc="upper right")
    axes.set_xlabel(f"depth ({curve.unit})")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title("\n".join([title, *outside(_above(curve, lines, high))]), fontsize=11)
    plain(axes)
    put_labels(axes, [label for label in labels if low <= label.y <= high])
    save_picture(figure, path, model=model)


def losses_of(baselines: Sequence[Baseline], curve: DepthCurve) -> dict[str, float]:
    """The baselines by name, in nats per token of the model's tokenizer."""
    return {line.name: line.loss_per_token_of(curve.final) for line in baselines}


def limits(curve: DepthCurve, lines: Mapping[str, float]) -> tuple[float, float]:
    """The limits of the axis of losses."""
    losses = [*_losses(curve), *(point.evaluation.loss for point in curve.stopping)]
    return visible(losses, list(lines.values()))


def _above(curve: DepthCurve, lines: Mapping[str, float], high: float) -> dict[str, float]:
    """What is above the picture, with its loss."""
    beyond = {
        f"{curve.name} at depth {depth}": point.loss
        for depth, point in curve.points.items()
        if not point.loss <= high
    }
    beyond |= {
        f"stopping above {point.threshold:g}": point.evaluation.loss
        for point in curve.stopping
        if not point.evaluation.loss <= high
    }
    return {name: loss for name, loss in lines.items() if loss > high} | beyond


def _losses(curve: DepthCurve) -> list[float]:
    return [point.loss for point in curve.points.values()]


def _label_of(curve: DepthCurve) -> Label:
    name = curve.name if curve.own_stopping is None else f"{curve.name}, never stopping"
    trained, last = curve.points[curve.trained_depth].loss, max(curve.points)
    text = f"{name}: {trained:.3f} at depth {curve.trained_depth}"
    return Label(last, curve.points[last].loss, text, COLORS[0], bold=True)


def _draw_curve(axes: Any, curve: DepthCurve) -> None:
    depths, losses, trained = list(curve.points), _losses(curve), curve.trained_depth
    axes.plot(depths, losses, marker="o", linewidth=2, color=COLORS[0])
    if trained < depths[-1]:
        axes.axvline(trained, color=COLORS[1], linewidth=1, zorder=1)
        where = {"xy": (trained, 0.01), "xycoords": ("data", "axes fraction"), "xytext": (4, 0)}
        text = f"trained depth: {trained}"
        axes.annotate(text, **where, textcoords="offset points", color=COLORS[1], fontsize=9)
    if len(depths) <= MOST_NUMBERS and not curve.stopping:
        for depth, loss in zip(depths, losses, strict=True):
            if loss <= axes.get_ylim()[1]:
                _number(axes, depth, loss)
    if curve.stopping:
        _draw_stopping(axes, curve)


def _number(axes: Any, depth: int, loss: float) -> None:
    axes.annotate(
        f"{loss:.3f}",
        (depth, loss),
        textcoords="offset points",
        xytext=(0, 10),
        ha="center",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _draw_stopping(axes: Any, curve: DepthCurve) -> None:
    diamonds = {"marker": "D", "markersize": 7, "color": COLORS[0]}
    places = [(point.mean_depth, point.evaluation.loss) for point in curve.stopping]
    label = "stopping by threshold, at the mean depth"
    axes.plot(*zip(*places, strict=True), **diamonds, linestyle=":", markerfacecolor="white", label=label)
    if curve.own_stopping is not None:
        depth, loss = curve.own_stopping.mean_depth, curve.own_stopping.evaluation.loss
        label = f"stopping above {curve.threshold:g}: {loss:.3f} at mean depth {depth:.2f}"
        axes.plot(depth, loss, **diamonds, linestyle="none", label=label)


def _name_thresholds(axes: Any, curve: DepthCurve) -> None:
    bottom, top = axes.get_ylim()
    nearby: dict[tuple[float, int], list[StoppingPoint]] = {}  # share a label, or labels would overlap
    for point in (point for point in curve.stopping if point.evaluation.loss <= top):
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
