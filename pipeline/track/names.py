"""The names of figures in trackers: what a column of the log is called there."""

from __future__ import annotations

import math
import re

from pipeline.track.tracker import Row

# The first pattern that matches a whole column decides; a column that has a group already keeps its name.
NAMES = {
    r"(\w+/.+)": r"\1",
    r"lr": r"lr",
    r"val_(loss|bpb)": r"val/\1",
    r"train_loss": r"train/loss",
    r"stopping_(\w+)": r"stopping/\1",
    r"(controller_loss|target_depth)": r"stopping/\1",
    r"mean_depth": r"recurrence/mean_depth",
    r"moe(\d+)_(\w+)": r"moe/\1/\2",
    r"(hellaswag|lambada|wikitext2)_(\w+)": r"zeroshot/\1/\2",
    r"(.+)": r"train/\1",
}


def named(row: Row) -> dict[str, float]:
    """The figures of a row that were measured, but for the step, under their names in a tracker."""
    figures = {
        _name(column): value for column, value in row.items() if value is not None and column != "step"
    }
    if "val/loss" in figures:
        figures["val/perplexity"] = math.exp(min(figures["val/loss"], 700.0))  # exp of more overflows
    return figures


def _name(column: str) -> str:
    found = ((re.fullmatch(pattern, column), name) for pattern, name in NAMES.items())
    return next(match.expand(name) for match, name in found if match)
