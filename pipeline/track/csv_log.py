"""The run's log as CSV, readable during the run and correct after a resume."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.storage.files import write_text
from pipeline.track.tracker import COLUMNS, HEALTH, Row

PROGRESS = {"step", "tokens", "lr", "seconds"}  # says where a row is, and measures nothing


class CsvLog:
    """Appends rows to a CSV file, which a resumed run finds as it was at its checkpoint.

    A new figure adds a column. A second row of a step completes the first. What only HealthCsv shows is left
    out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns = list(COLUMNS)
        self._last_step = ""
        rows = _read(path) if path.exists() else []
        if rows:
            self._columns = list(rows[0])
        self._file: TextIO
        self._rewrite(rows)

    def log(self, row: Row) -> None:
        row = {name: value for name, value in row.items() if not name.startswith(HEALTH)}
        if row.keys() <= PROGRESS:
            return
        new = [name for name in row if name not in self._columns]
        if new or str(row["step"]) == self._last_step:
            self._file.close()
            rows = _read(self._path)
            self._columns += new
            earlier = rows.pop() if rows and rows[-1]["step"] == str(row["step"]) else {}
            self._rewrite([*rows, earlier | {name: format_cell(row[name]) for name in row}])
        else:
            self._file.write(_line([format_cell(row.get(name)) for name in self._columns]))
            self._file.flush()
        self._last_step = str(row["step"])

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        write_text(self._path, format_rows(rows, self._columns))
        self._last_step = rows[-1]["step"] if rows else ""
        self._file = self._path.open("a", encoding="utf-8", newline="")


def read_log(path: Path) -> list[Row]:
    """The rows of a log, without what was not measured."""
    rows = [{name: float(cell) for name, cell in row.items() if cell} for row in _read(path)]
    return [row | {"step": int(row["step"])} for row in rows]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def format_rows(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """The content of a log with these rows."""
    return "".join([_line(columns), *(_line([row.get(name) or "" for name in columns]) for row in rows)])


def without_val_loss(row: dict[str, str]) -> dict[str, str] | None:
    """The row of a step that is not evaluated; None if there would be no row."""
    rest = row | dict.fromkeys(("val_loss", "val_bpb"), "")
    measured = [name for name in rest if name not in PROGRESS and rest[name]]
    return rest if measured or row["step"] == "0" else None


def _line(cells: Sequence[str]) -> str:
    return ",".join(cells) + "\n"


def format_cell(value: float | int | None) -> str:
    """A figure as a CSV file shows it, in six digits; blank for None."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
