"""A picture of the losses while training, with the baselines and, if they were measured, zero-shot tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.labels import COLORS, Label, draw_baselines, outside, plain, put_labels, visible
from pipeline.report.png import save_picture
from pipeline.storage.machine import decimal
from pipeline.track.tracker import Row

START = 0.05  # of the steps: losses up to there are far above all that matters, and may leave the picture
TASKS = ("hellaswag_accuracy", "lambada_accuracy")  # columns of log.csv


def draw_losses(
    path: Path,
    rows: Sequence[Row],
    baselines: Mapping[str, float],
    title: str,
    model: str | None = None,
) -> None:
    """Draw a PNG from the rows of a log and the baselines' losses in nats per token.

    With `log.zeroshot_interval`, a second panel has the accuracies of zero-shot tasks. `model` is the sha256
    of the weights that the training ended with.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = [name for name in TASKS if _column(rows, name)]
    panels, size = 1 + bool(tasks), (8, 5 + 3 * bool(tasks))
    figure, all_axes = plt.subplots(panels, 1, figsize=size, layout="constrained", squeeze=False, sharex=True)
    axes = all_axes[0, 0]
    labels, high = _draw_losses(axes, rows, baselines)
    above = {name: loss for name, loss in baselines.items() if loss > high}
    axes.set_title("\n".join([title, *outside(above)]), fontsize=11)
    if tasks:
        _draw_tasks(all_axes[1, 0], rows, tasks)
    all_axes[-1, 0].set_xlabel(_steps(rows))
    put_labels(axes, labels)
    save_picture(figure, path, model=model)


def _draw_losses(axes: Any, rows: Sequence[Row], baselines: Mapping[str, float]) -> tuple[list[Label], float]:
    """The labels, and the upper limit of the axis."""
    train, val = _column(rows, "train_loss"), _column(rows, "val_loss")
    settled = max(row["step"] or 0 for row in rows) * START
    matter = [loss for step, loss in (*train, *val) if step > settled] or [loss for _, loss in val]
    low, high = visible(matter, list(baselines.values()))
    axes.set_ylim(low, high)
    labels = []
    for name, points, look in (
        ("training", train, {"color": COLORS[4], "linewidth": 1}),
        ("validation", val, {"color": COLORS[0], "linewidth": 2, "marker": "o", "markersize": 4}),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), **look)
            step, loss = points[-1]
            labels.append(Label(step, min(loss, high), f"{name} {loss:.3f}", look["color"], bold=True))
    axes.margins(x=0.03)
    plain(axes)
    axes.set_ylabel("loss (nats per token)")
    return [*labels, *draw_baselines(axes, baselines, high)], high


def _draw_tasks(axes: Any, rows: Sequence[Row], tasks: Sequence[str]) -> None:
    labels = []
    for task, color in zip(tasks, COLORS, strict=False):
        points = [(step, 100 * share) for step, share in _column(rows, task)]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color)
        labels.append(Label(*points[-1], f"{task.partition('_')[0]} {points[-1][1]:.1f} %", color, bold=True))
    plain(axes)
    axes.set_ylabel("zero-shot accuracy (%)")
    put_labels(axes, labels)


def _column(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have this value."""
    return [(row["step"] or 0, value) for row in rows if (value := row.get(name)) is not None]


def _steps(rows: Sequence[Row]) -> str:
    last = rows[-1]
    steps, tokens = last["step"] or 0, last.get("tokens") or 0
    return f"step, of {decimal(tokens / steps)} tokens" if steps else "step"
