"""A bug report says what matters, and nothing private."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.cli import troubles
from pipeline.storage.files import write_text
from pipeline.storage.lock import holder, locked
from tests import tiny
from tests.conftest import Ended


def test_a_report_has_versions_and_changed_parameters_and_no_names(
    tmp_path: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_MIRROR", "/secret/folder")
    Path("presets").symlink_to(tiny.ROOT / "presets")
    text = tiny.params_yaml().replace("n_layer: 3 ", "n_layer: 7 ").replace('start: "\\n"', "start: secret")
    write_text(Path("params.yaml"), text)
    ended = stage("doctor")
    assert ended.status == 0
    for expected in (
        platform.python_version(),
        f"torch {torch.__version__}",
        "not a git repository",
        "PIPELINE_MIRROR",
        "preset default with model.n_layer=7, sample.start=...",
        "cpu: float32, ",
        " free for ",
        "0 finished, 0 unfinished, 0 bytes",
    ):
        assert expected in ended.out
    assert "secret" not in ended.out and str(tmp_path) not in ended.out
    assert len(ended.out.splitlines()) == 11
    assert ended.out.splitlines()[-1].split() == ["to", "mend", "nothing"]


def test_broken_parameters_are_reported_too(
    tmp_path: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stage("doctor")
    assert ended.status == 0 and "there is no params.yaml" in ended.out
    write_text(Path("params.yaml"), tiny.params_yaml().replace('start: "\\n"', "start: [my secret]"))
    ended = stage("doctor")
    assert ended.status == 0 and "invalid; " in ended.out and "secret" not in ended.out


@pytest.fixture
def killed(tiny_project: Path, stage: Callable[..., Ended], without_fsync: None) -> Path:
    """The current folder is a project whose training was killed after step 4. Returns the run's folder."""
    assert stage("train", "-S", "train.max_iters=4").status == 0
    (run,) = Path("runs").iterdir()
    shutil.rmtree(run / "finished")
    write_text(run / "lock", "999999999")
    return run


def lines(ended: Ended, name: str) -> list[str]:
    return [line[13:] for line in ended.out.splitlines() if line.startswith(f"{name:<12} ")]


def test_an_unfinished_run_is_described(killed: Path, stage: Callable[..., Ended]) -> None:
    ended = stage("doctor")
    (found,) = lines(ended, "unfinished")
    assert found.startswith(f"{killed.name}: step 4 of 4, ")
    assert found.endswith(
        f"; its process was killed, and the same parameters continue it; `rm -r {killed}` forgets it"
    )
    assert lines(ended, "at work") == [] and lines(ended, "to mend") == ["nothing"]
    assert lines(ended, "parameters") == ["there are no presets to compare with"]


def test_who_is_at_work_is_named_and_not_disturbed(killed: Path, stage: Callable[..., Ended]) -> None:
    killed.joinpath("step-000000005.tmp").mkdir()
    with locked(killed / "lock", busy=pytest.fail), locked(Path("data/tiny/.char.lock"), busy=pytest.fail):
        ended = stage("doctor")
        assert holder(killed / "lock") == str(os.getpid())
    assert set(lines(ended, "at work")) == {
        f"process {os.getpid()} is training a run",
        f"process {os.getpid()} is writing a folder",
    }
    assert lines(ended, "unfinished")[0].endswith(f"; process {os.getpid()} is training it")
    assert lines(ended, "to mend") == ["nothing"], "what is written now is no leftover"


def test_what_was_left_behind_has_a_remedy_and_no_name_of_the_user(
    killed: Path, stage: Callable[..., Ended]
) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    pid = int(dead.stdout)
    for folder in (
        "data/secret/char.tmp",
        "data/secret/raw.part",
        killed / "best.old",
        killed / "best.damaged",
    ):
        write_text(Path(folder, "file"), "x" * 2048)
    write_text(killed / "incident.json", "{}")
    copy = Path(".dvc/tmp/exps/standalone/tmpabc")
    rwlock = {"write": {"results/secret": {"pid": pid, "cmd": "secret"}}, "read": {}}
    for path in (Path(".dvc/tmp/rwlock"), copy / ".dvc/tmp/rwlock"):
        write_text(path, json.dumps(rwlock))
    write_text(Path(".dvc/tmp/exps/celery/broker/in/1.celery.msg"), "secret")
    ended = stage("doctor")
    found = lines(ended, "to mend")
    assert "secret" not in ended.out
    for expected, remedy in (
        ("2 unfinished writes of killed processes, 4.0 KiB; ", "find data runs results saved"),
        ("1 downloads or tokenizations that were interrupted, 2.0 KiB; ", "`dvc repro` goes on"),
        (f"{killed}: set aside because it did not verify: best.damaged, ", f"`rm -r {killed}/*.damaged`"),
        (f"{killed}/incident.json: a loss or gradient was not finite; ", "lower train.learning_rate"),
        (f".dvc/tmp/rwlock names dead processes ({pid}); ", "`rm .dvc/tmp/rwlock`"),
        ("1 copies of experiments that ended, ", f"`rm -r {copy}`"),
        ("1 experiments wait in the queue; ", "`dvc queue start`"),
    ):
        assert [line for line in found if line.startswith(expected) and remedy in line], (expected, ended.out)
    assert len(found) == 7
    command = next(line for line in found if "`find" in line).split("`")[1]
    subprocess.run(command, shell=True, check=False, capture_output=True)
    write_text(Path(".dvc/tmp/rwlock"), "{")
    found = lines(stage("doctor"), "to mend")
    assert len(found) == 6 and ".dvc/tmp/rwlock is damaged; `rm .dvc/tmp/rwlock`" in found


def test_an_experiment_that_runs_is_left_alone(tiny_project: Path, stage: Callable[..., Ended]) -> None:
    rwlock = {"read": {"params.yaml": [{"pid": os.getpid(), "cmd": "dvc exp run"}]}}
    for path in (Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/standalone/tmpabc/.dvc/tmp/rwlock")):
        write_text(path, json.dumps(rwlock))
    assert lines(stage("doctor"), "to mend") == ["nothing"]


def test_a_full_disk_is_said(
    tiny_project: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troubles, "LITTLE_ROOM", 1 << 60)
    found = lines(stage("doctor"), "to mend")
    assert len(found) == 4
    assert all(line.startswith("only ") and "`dvc gc -w`" in line for line in found)
