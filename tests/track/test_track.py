"""The log is right after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.track.csv_log import CsvLog
from pipeline.track.health_csv import HealthCsv
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
        "step,tokens,train_loss,val_loss,val_bpb,lr,grad_norm,tokens_per_second,mfu,seconds\n"
        "0,0,,3.14159,,0.001,0.333333,12345.7,0.25,\n"
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
    assert lines[1:] == ["0,,,4,,,,,,,", "5,9,3,2,,,,,,,3.5"]


HEALTHY = {"health/grad_norm/h.0.attn": 0.5, "health/logit_rms/head": 2.0, "health/dead_units/h.0.attn": 0}
TABLE = """\
step,layer,grad_norm,weight_norm,update_norm,update_ratio,activation_rms,attention_entropy,dead_units,logit_rms
10,h.0.attn,0.5,,,,,,0,
10,head,,,,,,,,2
"""


def test_health_is_a_table_of_its_own(tmp_path: Path) -> None:
    log, health = CsvLog(tmp_path / "log.csv"), HealthCsv(tmp_path / "health.csv", step=0)
    for tracker in (log, health):
        tracker.log(row(5))
        tracker.log({"step": 10, "tokens": 640, "lr": 1e-3, **HEALTHY})
        tracker.log({**row(15), "skipped_steps": 1})
        tracker.close()
    assert (tmp_path / "health.csv").read_text() == TABLE
    assert steps(tmp_path / "log.csv") == [5, 15]
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header == ",".join([*COLUMNS, "skipped_steps"])


def test_health_goes_on_with_what_is_whole_and_not_later(tmp_path: Path) -> None:
    path = tmp_path / "health.csv"
    later = "11,h.0,,,,,1,,,\n"
    for spoiled in (
        "",
        later,
        later * 3 + "12,h.0,,",
        "1",
        "10,h.0,,,,,1,",
        "\0\n" * 3,
        "ten,h.0,,,,,1,,,\n",
    ):
        path.write_text(TABLE + spoiled)
        HealthCsv(path, step=10).close()
        assert path.read_text() == TABLE, spoiled
    path.write_bytes(b"\xff\xfe" * 100)
    HealthCsv(path, step=10).close()
    assert path.read_text() == TABLE.splitlines(keepends=True)[0]


def test_a_linked_log_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    path, link = tmp_path / "log.csv", tmp_path / "link.csv"
    write(path, [0, 10])
    link.hardlink_to(path)
    write(path, [20])
    assert steps(link) == [0, 10]
