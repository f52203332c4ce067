"""A run can be watched and used from another process while it trains."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import watch
from pipeline.serve.samples import write_samples
from pipeline.storage.checksums import read_manifest
from pipeline.storage.files import write_text
from pipeline.train.runs import Run
from pipeline.web.models import ServedModel
from tests.conftest import Ended
from tests.train.runs import flip_a_bit, stop_at

Stage = Callable[..., Ended]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECONDS", "SECONDS_BETWEEN_LINES", "PATIENCE"):
        monkeypatch.setattr(watch, name, 0.01)


@pytest.fixture
def interrupted(tiny_project: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was stopped after 13 of 20 steps; its newest row is of step 12."""
    with monkeypatch.context() as patched:
        stop_at(patched, 13, signal.SIGTERM)
        assert stage("train").status == 143
    (folder,) = Path("runs").iterdir()
    return Run(folder)


@contextmanager
def training(run: Run, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Another thread holds the run's lock until the watching has shown something, and calls `then`."""
    begun, shown = threading.Event(), threading.Event()

    def train() -> None:
        with run.locked(lambda _: None):
            begun.set()
            shown.wait(30)
            then()

    thread = threading.Thread(target=train)
    thread.start()
    begun.wait(30)
    sleep = watch.time.sleep

    def slept(seconds: float) -> None:
        shown.set()
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(watch.time, "sleep", slept)
        yield
    shown.set()
    thread.join()


def test_without_any_run_it_says_what_to_do(tiny_project: Path, stage: Stage) -> None:
    ended = stage("watch")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "nothing is training now\nno run is finished yet; `dvc repro` starts one\n"


def test_without_an_active_run_the_last_finished_one_is_shown(tiny_project: Path, stage: Stage) -> None:
    assert stage("train").status == 0
    (folder,) = Path("runs").iterdir()
    model = read_manifest(folder / "best")["model.safetensors"]
    write_samples(Path("results/samples.txt"), ["\nthe old\nship"], model)
    lines = stage("watch").out.splitlines()
    assert lines[0] == "nothing is training now" and "└0 ───" in lines[9]
    assert lines[11:14] == ["a sample:", "  the old", "  ship"]
    assert lines[-1].startswith(f"the last run, {folder}: val loss ") and lines[-1].endswith(
        " after 20 steps"
    )
    write_samples(Path("results/samples.txt"), ["of another"], "another model")
    assert "a sample:" not in stage("watch").out


def test_plain_lines_until_the_run_ends(interrupted: Run, stage: Stage) -> None:
    with training(interrupted):
        ended = stage("watch")
    lines = ended.out.splitlines()
    assert (ended.status, ended.err) == (0, "")
    assert lines[0].startswith("step 12/20  loss ") and "val " in lines[0] and lines[0].endswith(" left")
    assert (
        lines[-1] == f"{interrupted.folder}: stopped; step 13 is saved, and the same command continues there"
    )


def test_the_end_says_where_the_results_are(interrupted: Run, stage: Stage) -> None:
    metrics = {"steps": 20, "val_loss": 2.5}
    with training(interrupted, then=lambda: interrupted.finish(metrics)):
        ended = stage("watch")
    assert ended.out.splitlines()[-1] == (
        f"{interrupted.folder}: finished, step 20, val loss 2.5000; {interrupted.finished} has the log"
    )
    write_text(Path("results/run.json"), f'{{"run": "{interrupted.folder.name}"}}')
    shutil.rmtree(interrupted.finished)
    with training(interrupted, then=lambda: interrupted.finish(metrics)):
        assert stage("watch").out.endswith("; results/ has the model\n")


def test_ctrl_c_ends_only_the_watching(
    interrupted: Run, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with training(interrupted):
        with monkeypatch.context() as patched:
            patched.setattr(watch.time, "sleep", interrupt)
            ended = stage("watch")
        assert watch.active_run() is not None
    assert ended.status == 0
    assert ended.out.splitlines()[-1] == "no longer watching; the training goes on"


def test_the_newest_of_several_active_runs_is_followed(interrupted: Run) -> None:
    older = Run(interrupted.folder.with_name("0000"))
    shutil.copytree(interrupted.folder, older.folder)
    os.utime(older.about, (1, 1))
    with training(interrupted), training(older):
        found = watch.active_run()
    assert found is not None and found.folder == interrupted.folder


def test_a_terminal_of_60_columns_shows_it_in_place(
    interrupted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with training(interrupted):
            watch.main()
    shown = b""
    while b"continues there" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    frames = shown.decode().split("\x1b[J")
    assert len(frames) > 1
    lines = frames[1].replace("\r", "").splitlines()
    assert all(len(line) < 60 for line in lines[:12])
    assert lines[0].startswith("runs/") and lines[1].startswith(" 60% ██")
    assert "●" in "".join(lines[2:11]) and lines[11] == "loss while training, and ● validation loss"


def test_a_log_that_is_being_written_is_read_as_far_as_it_goes(interrupted: Run, stage: Stage) -> None:
    with interrupted.log.open("a") as file:
        file.write("15,96")
    with training(interrupted):
        assert stage("watch").out.startswith("step 12/20  ")
    interrupted.log.write_bytes(b"\xff\x00")
    with training(interrupted):
        assert stage("watch").out.startswith(f"{interrupted.folder}: starting\n")


def test_sample_and_export_use_the_newest_checkpoint_until_there_is_a_model(
    interrupted: Run, stage: Stage
) -> None:
    older, newest = interrupted.checkpoints()
    for command in (["sample", "--start", "the "], ["export"]):
        ended = stage(*command)
        assert ended.status == 0
        said = f"note: no results/model yet; this is {newest}, the newest checkpoint"
        assert ended.err.splitlines()[0] == said
    weights = load_file("results/export/model.safetensors")["transformer.wte.weight"]
    assert torch.equal(weights, load_file(newest / "model.safetensors")["embed.wte.weight"])
    flip_a_bit(newest / "model.safetensors")
    assert f"this is {older}, " in stage("sample").err
    flip_a_bit(older / "state.json")
    ended = stage("sample")
    assert (
        ended.status == 2
        and ended.err.startswith("error: model results/model: no such")
        and ended.err.count("\n") == 1
    )


@pytest.mark.parametrize("name", ["results/model", "a run"])
def test_a_server_takes_each_new_checkpoint(interrupted: Run, tmp_path: Path, name: str) -> None:
    newest = interrupted.checkpoints()[-1]
    newest.rename(tmp_path / newest.name)
    name = str(interrupted.folder) if name == "a run" else name
    served = ServedModel(name, torch.device("cpu"))
    assert served.current.stored.folder == interrupted.checkpoints()[0]
    (tmp_path / newest.name).rename(newest)
    served.refresh()
    assert served.current.stored.folder == newest
    assert served.current.name == name


def test_a_run_that_trains_goes_before_one_that_does_not(interrupted: Run, stage: Stage) -> None:
    other = Run(interrupted.folder.with_name("ffff"))
    shutil.copytree(interrupted.folder, other.folder)
    with training(interrupted):
        assert f"this is {interrupted.folder}/" in stage("sample").err
    with training(other):
        assert f"this is {other.folder}/" in stage("sample").err


def test_a_training_without_a_checkpoint_is_waited_for(interrupted: Run, stage: Stage) -> None:
    for checkpoint in interrupted.checkpoints():
        shutil.rmtree(checkpoint)
    with training(interrupted):
        ended = stage("sample")
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert "a training runs, but has no checkpoint yet" in ended.err


def test_a_model_that_is_there_or_named_is_used(interrupted: Run, stage: Stage) -> None:
    ended = stage("sample", "--model", "saved/none")
    assert ended.status == 2 and "note" not in ended.err
    assert stage("train").status == 0
    assert "note" not in stage("sample").err
    shutil.rmtree("results/model")
    assert stage("sample").status == 2, "the run is finished, so `dvc repro` publishes its model"
