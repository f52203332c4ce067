"""The figures of the network's health as a table: a row for each layer each time they are measured."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.storage.files import write_text
from pipeline.track.csv_log import format_cell
from pipeline.track.tracker import HEALTH, Row

HEALTH_FILE = "health.csv"

COLUMNS = (
    "grad_norm",
    "weight_norm",
    "update_norm",
    "update_ratio",
    "activation_rms",
    "attention_entropy",
    "dead_units",
    "logit_rms",
)


class HealthCsv:
    """Appends to a CSV file what the log leaves out: figures named `health/<column>/<layer>`.

    Columns of the log would be hundreds. A run that continues at `step` finds the rows up to there, but for
    what cannot be read: nothing depends on them.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in _complete_rows(path) if int(row.partition(",")[0]) <= step]
        write_text(path, "".join([f"step,layer,{','.join(COLUMNS)}\n", *kept]))
        self._file = path.open("a", encoding="utf-8", newline="")

    def log(self, row: Row) -> None:
        layers: dict[str, dict[str, str]] = {}
        for name, value in row.items():
            if name.startswith(HEALTH):
                _, column, layer = name.split("/")
                layers.setdefault(layer, {})[column] = format_cell(value)
        for layer, cells in layers.items():
            values = ",".join(cells.pop(column, "") for column in COLUMNS)
            assert not cells, f"no column for {', '.join(cells)}"
            self._file.write(f"{row['step']},{layer},{values}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_health(path: Path) -> list[Row]:
    """The rows of such a file by step, without what was not measured; none if there is no file."""
    rows: dict[int, dict[str, float | int | None]] = {}
    for row in _complete_rows(path):
        step, layer, *cells = row.removesuffix("\n").split(",")
        figures = {
            f"{HEALTH}{column}/{layer}": float(cell)
            for column, cell in zip(COLUMNS, cells, strict=True)
            if cell
        }
        rows.setdefault(int(step), {"step": int(step)}).update(figures)
    return list(rows.values())


def _complete_rows(path: Path) -> list[str]:
    """The lines below the heading that are whole; none if there is no file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    complete = re.compile(rf"\d+(,[^,]*){{{1 + len(COLUMNS)}}}\n")
    return [line for line in text.splitlines(keepends=True) if complete.fullmatch(line)]
