"""What pictures share: colours, limits of axes, and names beside what they name, none upon another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours, which people with any kind of colour blindness tell apart, without yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GRAY = "#666666"


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    color: Any = GRAY
    bold: bool = False


def spread(
    wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Places near the wanted ones, in the same order, that are at least `gap` apart.

    Neighbours that would overlap are centred together on the mean of what they want, between `low` and `high`
    if they fit there.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[list[int]] = []

    def middle(group: Sequence[int]) -> float:
        half = gap * (len(group) - 1) / 2
        return max(low + half, min(high - half, sum(wanted[index] for index in group) / len(group)))

    for index in order:
        groups.append([index])
        while (
            len(groups) > 1
            and middle(groups[-1]) - middle(groups[-2]) < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [0.0] * len(wanted)
    for group in groups:
        for rank, index in enumerate(group):
            places[index] = middle(group) + gap * (rank - (len(group) - 1) / 2)
    return places


def put_labels(axes: Any, labels: Sequence[Label], size: float = 9) -> None:
    """Write the labels at the right of the axes, with lines to their points; the limits must be final."""
    bottom, top = axes.get_ylim()
    points = axes.figure.get_size_inches()[1] * axes.get_position().height * 72  # of the axes' height
    gap = (top - bottom) * 1.35 * size / points
    right = axes.get_xlim()[1]
    for label, place in zip(labels, spread([label.y for label in labels], gap, bottom, top), strict=True):
        moved = abs(place - label.y) > gap / 4 or label.x < right
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(1.02, (place - bottom) / (top - bottom)),
            textcoords="axes fraction",
            color=label.color,
            fontsize=size,
            fontweight="bold" if label.bold else "normal",
            va="center",
            arrowprops={"arrowstyle": "-", "color": label.color, "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 0}
            if moved
            else None,
            annotation_clip=False,
        )


def draw_baselines(axes: Any, lines: Mapping[str, float], high: float) -> list[Label]:
    """Draw a line for each baseline up to `high`. Returns their labels; the limits must be final."""
    shown = {name: loss for name, loss in lines.items() if loss <= high}
    for loss in shown.values():
        axes.axhline(loss, color=GRAY, linestyle="--", linewidth=1, zorder=1)
    right = axes.get_xlim()[1]
    return [Label(right, loss, f"{name} {loss:.3f}") for name, loss in shown.items()]


def visible(losses: Sequence[float], lines: Sequence[float]) -> tuple[float, float]:
    """The limits of an axis of losses: from the least to the highest that matters, with a margin.

    That is the highest loss of the model, or the best of the baselines if that is higher. A loss above all
    baselines, of which one is usually the uniform distribution, and above twice the least, does not matter.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    ceiling = max([*lines, *(2 * loss for loss in sorted(finite)[:1])], default=1.0)
    matter = [loss for loss in finite if loss <= ceiling]
    high = max([*matter, *sorted(lines)[:1]], default=1.0)
    low = min((loss for loss in (*finite, *lines) if loss <= high), default=high - 1.0)
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def outside(above: Mapping[str, float]) -> list[str]:
    """A line that names what is above the picture, if anything is."""
    names = ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(above.items(), key=lambda one: one[1]))
    return [f"above this picture: {names}"] if names else []


def plain(axes: Any) -> None:
    """Axes without a frame at the top and the right, on a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
