"""Each tracker holds each step of a run once, however the run came about."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.track import apart, wandb
from tests import tiny
from tests.conftest import Ended
from tests.track.shown import Shown, in_tensorboard, in_wandb, wandb_history
from tests.train.runs import Runs, rows, stopped_at_each

ALL = "log.trackers=[csv,tensorboard,wandb]"
BOARD = "log.trackers=[tensorboard]"


@pytest.fixture(autouse=True)
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of W&B who has not logged in, on a machine that may be slow."""
    monkeypatch.setattr(wandb, "SECONDS_TO_FINISH", 100)
    monkeypatch.setattr(apart, "SECONDS_TO_FINISH", 100)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))


def check_complete(shown: Shown, log: list[dict[str, str]]) -> None:
    """Each figure of the log is there once."""
    names = {"train_loss": "train/loss", "val_loss": "val/loss", "val_bpb": "val/bpb", "lr": "lr"}
    for column, name in names.items():
        logged = [(int(row["step"]), float(row[column])) for row in log if row[column]]
        assert [step for step, _ in shown[name]] == [step for step, _ in logged]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in logged], rel=1e-5)


def test_a_killed_run_goes_on_with_each_step_once(runs: Runs) -> None:
    overrides = [ALL, "log.log_interval=1"]
    command = [sys.executable, "-m", "tests.train.killed", str(runs.tokens), str(runs.folder), *overrides]
    assert subprocess.run(command, cwd=tiny.ROOT, timeout=120).returncode == -signal.SIGKILL
    assert sorted(runs.only().glob("step-*"))[-1].name == "step-000000012"
    fitted = runs(*overrides)
    check_complete(in_tensorboard(runs.only() / "tensorboard"), rows(fitted))
    check_complete(in_wandb(runs.only()), rows(fitted))


def test_a_run_that_was_stopped_often_has_each_step_once(runs: Runs) -> None:
    fitted = stopped_at_each(runs, [1, 5, 13, 14], BOARD)
    check_complete(in_tensorboard(runs.only() / "tensorboard"), rows(fitted))


def test_the_health_of_layers_is_shown_once_each_time(runs: Runs) -> None:
    stopped_at_each(runs, [5, 13], "log.trackers=[tensorboard,wandb]", "log.health_interval=4")
    steps = [0, 4, 8, 12, 16, 20]
    for shown in (in_tensorboard(runs.only() / "tensorboard"), in_wandb(runs.only())):
        figures = {name: [step for step, _ in found] for name, found in shown.items() if "health" in name}
        assert len(figures) > 20
        assert all(found == steps[-len(found) :] and len(found) >= 5 for found in figures.values()), figures


def test_a_longer_run_shows_the_steps_of_the_one_that_it_continues(runs: Runs) -> None:
    runs("train.max_iters=12", BOARD)
    fitted = runs(BOARD)
    check_complete(in_tensorboard(fitted.run.folder / "tensorboard"), rows(fitted))


def test_a_finished_run_is_not_logged_again(runs: Runs) -> None:
    runs(BOARD)
    before = {path: path.read_bytes() for path in (runs.only() / "tensorboard").iterdir()}
    runs(BOARD)
    assert {path: path.read_bytes() for path in (runs.only() / "tensorboard").iterdir()} == before


def test_the_trackers_are_no_part_of_a_run(runs: Runs) -> None:
    runs("log.trackers=[csv]")
    runs("log.trackers=[]", "log.wandb_project=other")
    assert not (runs.only() / "tensorboard").exists()


def test_stages_add_the_curve_and_the_samples_to_the_run(
    tiny_project: Path, stage: Callable[..., Ended], without_fsync: None
) -> None:
    models = ("-S", "baselines.models=[uniform]")
    assert stage("train", "-S", BOARD).status == 0
    assert stage("eval_baselines", "uniform").status == 0
    assert stage("depth_curve", *models, "-S", BOARD).status == 0
    assert stage("sample", "--out", "results/samples.txt", "-S", ALL).status == 0
    (run,) = Path("runs").iterdir()
    curve = in_tensorboard(run / "tensorboard")["depth/val_loss"]
    depths = Path("results/depth.csv").read_text().splitlines()[1:]
    assert [f"{depth}" for depth, _ in curve] == [line.partition(",")[0] for line in depths]
    (last,) = [row for row in wandb_history(run) if "samples/path" in row]
    assert last["_step"] == 20 and "depth/val_loss_table/path" in last
    (html,) = run.rglob("*.html")
    text = json.loads((run / "later.json").read_text())["samples"][0]
    assert text in Path("results/samples.txt").read_text() and text[:5] in html.read_text()


@pytest.mark.parametrize(
    "spoil", [lambda run: run.rename("away"), lambda run: Path("results/run.json").unlink()]
)
def test_samples_of_a_run_that_is_gone_are_only_written(
    tiny_project: Path, stage: Callable[..., Ended], without_fsync: None, spoil: Callable[[Path], object]
) -> None:
    assert stage("train", "-S", "train.max_iters=2").status == 0
    (run,) = Path("runs").iterdir()
    spoil(run)
    ended = stage("sample", "--out", "results/samples.txt")
    assert ended.status == 0 and "warning" not in ended.err
    assert Path("results/samples.txt").exists() and not list(Path("runs").glob("*/later.json"))
