"""The run's log as CSV, readable during the run and correct after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.storage.files import write_text
from pipeline.track.tracker import COLUMNS, Row


class CsvLog:
    """Appends rows to a CSV file. First drops rows after `step`, which a resumed run will write again.

    A new figure adds a column.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._columns = list(COLUMNS)
        kept = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                complete = [line for line in file if line.endswith("\n")]
            kept = [row for row in csv.DictReader(complete) if row["step"] and int(row["step"]) <= step]
            if kept:
                self._columns = list(kept[0])
        self._rewrite(kept)

    def log(self, row: Row) -> None:
        new = [name for name in row if name not in self._columns]
        if new:
            self._file.close()
            with self._path.open(encoding="utf-8", newline="") as file:
                kept = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(kept)
        self._writer.writerow([_short(row.get(name)) for name in self._columns])
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        lines = [",".join(row.get(name) or "" for name in self._columns) for row in rows]
        write_text(self._path, "\n".join([",".join(self._columns), *lines]) + "\n")
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")


def _short(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
