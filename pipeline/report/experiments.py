"""Experiments beside their baseline: a table for a terminal, the same as CSV, and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.config.params_yaml import yaml_value
from pipeline.config.presets import differences
from pipeline.report.labels import COLORS, GRAY, Label, plain, put_labels
from pipeline.report.png import save_picture
from pipeline.report.tables import plain_table, write_csv
from pipeline.storage.machine import decimal

WIDTH = 100  # characters of the table
NAME_WIDTH = 16
BASELINE = "baseline"
UNITS = {"val_loss": "nats per token", "val_bpb": "bits per byte"}
PANELS = {"params": "parameters", "seconds": "seconds of training", "tokens": "training tokens"}


@dataclass(frozen=True)
class Experiment:
    """One experiment, or the baseline. It has figures, those of metrics.json, once it is finished."""

    name: str
    params: Mapping[str, Mapping[str, Any]]  # as in params.yaml
    figures: Mapping[str, float]
    state: str = ""  # queued, running or failed; empty for a finished one


class Comparison:
    """Finished experiments with the best one first, those on another text last; then the others.

    Losses per token compare only between the same tokens of the same text. With other tokenizers among the
    experiments, `figure` is therefore `val_bpb`. On another text, nothing compares.
    """

    def __init__(self, baseline: Experiment, experiments: Sequence[Experiment]) -> None:
        self.baseline = baseline
        same = [one for one in experiments if self.has_same_text(one)]
        other_tokens = any(one.params["tokenizer"] != baseline.params["tokenizer"] for one in same)
        self.figure = "val_bpb" if other_tokens else "val_loss"
        self.rows = sorted([baseline, *experiments], key=self._rank)

    def has_same_text(self, one: Experiment) -> bool:
        return bool(one.params["data"]["dataset"] == self.baseline.params["data"]["dataset"])

    def changes(self, one: Experiment) -> dict[str, Any]:
        """{dotted name: value} of the parameters in which an experiment differs from the baseline."""
        found = differences(self.baseline.params, one.params)
        return {name: found[name][1] for name in sorted(found)}

    def difference(self, one: Experiment) -> float | None:
        """By how much the figure is above the baseline's; None if that cannot be said."""
        if one is self.baseline or not self.has_same_text(one):
            return None
        mine, base = one.figures.get(self.figure), self.baseline.figures.get(self.figure)
        return None if mine is None or base is None else mine - base

    def table(self) -> str:
        """The table, at most WIDTH characters wide, with remarks about what does not compare."""
        header = ("experiment", "loss", "bpb", "diff", "best at", "params", "tokens", "time", "changed")
        cells = [header, *map(self._cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        widths[0] = min(widths[0], NAME_WIDTH)
        widths[-1] = WIDTH - sum(width + 2 for width in widths[:-1])
        lines = [
            line
            for row in cells
            for line in zip_longest(*map(_wrapped, row, widths), fillvalue="")  # a row has several lines
        ]
        return "\n".join([plain_table(lines, "<>>>>>>><"), *self._remarks()])

    def write_csv(self, path: Path) -> None:
        """Write all rows, with a column for each figure and for each parameter that differs somewhere."""
        figures = ("val_loss", "val_bpb", "best_step", "params", "tokens", "seconds")
        names = sorted({name for one in self.rows for name in self.changes(one)})
        header = ("experiment", "state", *figures, f"{self.figure}_difference", *names)
        rows = []
        for one in self.rows:
            values = [one.figures.get(name, "") for name in figures]
            difference = self.difference(one)
            of_names = [_at(one.params, name) for name in names]
            rows.append([one.name, one.state, *values, "" if difference is None else difference, *of_names])
        write_csv(path, header, rows)

    def draw(self, path: Path) -> None:
        """Draw a PNG of the figure against parameters, seconds and tokens; experiments on the same text."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        shown = [one for one in self.rows if one.figures and self.has_same_text(one)]
        height = 3 + 0.16 * len(shown)
        figure, panels = plt.subplots(1, 3, figsize=(13, height), layout="constrained", sharey=True)
        for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
            axes.set_xlabel(label)
            axes.locator_params(axis="x", nbins=4)
            plain(axes)
            axes.grid(visible=False, axis="y")
            for one in shown:
                loss, color = one.figures[self.figure], self._color(one)
                axes.axhline(loss, color=GRAY, linewidth=0.5, alpha=0.5, zorder=1)
                axes.plot(one.figures[name], loss, "o", color=color)
            axes.margins(x=0.12, y=0.12)
            if name != "seconds":
                axes.xaxis.set_major_formatter(lambda count, _: decimal(count))
        edge = panels[-1].get_xlim()[1]
        put_labels(panels[-1], [self._label(one, edge) for one in shown])
        panels[0].set_ylabel(f"validation loss ({UNITS[self.figure]})")
        save_picture(figure, path)

    def _color(self, one: Experiment) -> str:
        return COLORS[1] if one is self.baseline else COLORS[0]

    def _label(self, one: Experiment, x: float) -> Label:
        name = one.name if len(one.name) <= NAME_WIDTH else f"{one.name[: NAME_WIDTH - 1]}…"
        loss = one.figures[self.figure]
        return Label(x, loss, f"{name} {loss:.3f}", self._color(one), bold=one is self.baseline)

    def _rank(self, one: Experiment) -> tuple[bool, bool, float, str]:
        return not one.figures, not self.has_same_text(one), one.figures.get(self.figure, 0.0), one.name

    def _cells(self, one: Experiment) -> tuple[str, ...]:
        changed = " ".join(f"{name}={yaml_value(value)}" for name, value in self.changes(one).items())
        if not one.figures:
            return (one.name, one.state or "-", *[""] * 6, changed)
        figures, difference = one.figures, self.difference(one)
        return (
            one.name,
            f"{figures['val_loss']:.4f}",
            f"{figures['val_bpb']:.4f}",
            "" if difference is None else f"{difference:+.4f}",
            f"{figures['best_step']:,}",
            decimal(figures["params"]),
            decimal(figures["tokens"]),
            _time(figures["seconds"]),
            changed,
        )

    def _remarks(self) -> list[str]:
        remarks = []
        if self.figure == "val_bpb":
            remarks.append("Tokenizers differ, so the order and the differences are those of bits per byte.")
        if not all(map(self.has_same_text, self.rows)):
            remarks.append("Experiments on another text have no difference: their losses do not compare.")
        return remarks


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; a word is broken only if it is longer than a line."""
    words = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line for word in words for line in textwrap.wrap(word, width)] or [""]


def _time(seconds: float) -> str:
    """A duration in two or three digits: 75s, 12m, 3.5h, 40h."""
    for unit, name in ((3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{1 if seconds < 10 * unit else 0}f}{name}"
    return f"{seconds:.0f}s"


def _at(params: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    value = params.get(section, {}).get(key)
    return yaml_value(value)
