"""The log is right after a resume, and progress is readable on a terminal and off it."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest

from pipeline.track import console
from pipeline.track.console import Console
from pipeline.track.csv_log import CsvLog
from pipeline.track.tracker import COLUMNS, Row


def row(step: int, val_loss: float | None = None) -> Row:
    values = {"step": step, "tokens": step * 64, "train_loss": 2.5 if step else None, "val_loss": val_loss}
    speed = {"lr": 1e-3, "grad_norm": 1 / 3, "tokens_per_second": 12345.678, "mfu": 0.25}
    return values | speed


def write(path: Path, steps: list[int]) -> None:
    log = CsvLog(path)
    for step in steps:
        log.log(row(step))
    log.close()


def steps(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(line["step"]) for line in csv.DictReader(file)]


def test_rows_are_csv_with_blanks_for_what_was_not_measured(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    log.log(row(0, val_loss=3.14159265))
    assert (tmp_path / "log.csv").read_text() == (  # readable while the run goes on
        "step,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,mfu\n"
        "0,0,,3.14159,0.001,0.333333,12345.7,0.25\n"
    )
    log.close()


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    write(path, [0, 10])
    before = path.read_text()
    write(path, [])
    assert path.read_text() == before
    write(path, [20, 30])
    assert steps(path) == [0, 10, 20, 30] and path.read_text().startswith(before)


def test_a_second_row_of_a_step_completes_the_first(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    log.log({"step": 0, "val_loss": 4.0})
    log.log({"step": 5, "tokens": 9, "train_loss": 3.0})
    log.log({"step": 5, "tokens": 9, "val_loss": 2.0, "mean_depth": 3.5})
    log.close()
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == ",".join([*COLUMNS, "mean_depth"])
    assert lines[1:] == ["0,,,4,,,,,", "5,9,3,2,,,,,3.5"]


def test_a_linked_log_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    path, link = tmp_path / "log.csv", tmp_path / "link.csv"
    write(path, [0, 10])
    link.hardlink_to(path)
    write(path, [20])
    assert steps(link) == [0, 10]


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console(steps=2000, step=1000)
    progress.log(row(1000, val_loss=3.5))
    progress.log(row(1200))  # the last line was just now
    progress.log(row(1500, val_loss=3.25))
    progress.note("saved")
    progress.log(row(2000, val_loss=3.0))
    progress.close()
    out, err = capsys.readouterr()
    assert not out
    assert "\r" not in err
    lines = err.splitlines()
    assert lines[0] == "step 1,000/2,000  loss 2.5000  val 3.5000  12,346 tok/s"
    assert lines[1].startswith("step 1,500/2,000  loss 2.5000  val 3.2500  12,346 tok/s  00:00 left")
    assert lines[2:] == ["saved", "step 2,000/2,000  loss 2.5000  val 3.0000  12,346 tok/s"]


def test_plain_lines_keep_coming_between_evaluations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    progress = Console(steps=100, step=0)
    for step in range(1, 100):
        clock[0] = float(step)
        progress.log(row(step))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in range(6, 100, 6)]
    assert lines[4].endswith("01:10 left")  # 30 steps took 30 seconds, 70 remain


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Console(steps=100, step=20)
    progress.log(row(20, val_loss=3.5))
    progress.log(row(70))
    progress.close()
    last = terminal.getvalue().split("\r")[-1]
    assert "70/100" in last
    assert "loss 2.5000, val 3.5000, 12,346 tok/s" in last


def test_a_run_goes_on_when_its_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    for terminal in (False, True):
        stream = Gone()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Console(steps=100, step=0)
        progress.log(row(10, val_loss=3.5))
        progress.note("saved")
        progress.close()
