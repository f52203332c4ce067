"""The run's log as CSV, readable while the run goes on and correct after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.files import write_text
from pipeline.track import COLUMNS, Row


class CsvLog:
    """Appends rows to a CSV file, after dropping those past `step`, which a resumed run will write again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                complete = [line for line in file if line.endswith("\n")]
            kept = [row for row in csv.DictReader(complete) if row["step"] and int(row["step"]) <= step]
        lines = [",".join(COLUMNS)] + [",".join(row[name] for name in COLUMNS) for row in kept]
        write_text(path, "\n".join(lines) + "\n")
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def log(self, row: Row) -> None:
        self._writer.writerow(["" if row[name] is None else _short(row[name]) for name in COLUMNS])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _short(value: float | int | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
