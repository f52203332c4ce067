"""A run survives damage, kills at any moment and company, and is reused only when it is the same run."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.storage.checksums import damage as damage_of
from pipeline.storage.checksums import save_folder
from pipeline.train.runs import Keep, Run
from tests.train.dying import DiesAfter, Killed
from tests.train.runs import flip_a_bit


def quiet(text: str) -> None:
    pass


def writing(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in ("weights", "state", "log.csv"):
            (folder / name).write_text(content)
        (folder / "state.json").write_text('{"step": 20}')

    return write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with its best model and three checkpoints saved."""
    run = Run(tmp_path / "run")
    with run.locked(quiet):
        run.begin({})
        run.save_best(writing("best"))
        for step in (10, 20, 30):
            run.save(step, writing(str(step)))
    return run


DAMAGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda folder: flip_a_bit(folder / "weights"),
    "truncated": lambda folder: (folder / "weights").write_text(""),
    "file missing": lambda folder: (folder / "state").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest zeroed": lambda folder: (folder / "manifest.json").write_bytes(b"\0" * 200),
    "folder missing": shutil.rmtree,
}


def test_two_checkpoints_are_kept_and_the_last_after_the_end(run: Run) -> None:
    assert sorted(path.name for path in run.folder.glob("step-*")) == ["step-000000020", "step-000000030"]
    run.log.write_text("rows")
    run.finish({"val_loss": 1.0})
    assert (run.finished / "log.csv").read_text() == "rows"
    assert [path.name for path in run.folder.glob("step-*")] == ["step-000000030"]
    assert run.metrics() == {"val_loss": 1.0}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run: Run, damage: str) -> None:
    assert run.newest() == run.folder / "step-000000030"
    DAMAGES[damage](run.folder / "step-000000030")
    assert run.newest() == run.folder / "step-000000020"
    shutil.rmtree(run.folder / "step-000000020")
    assert run.newest() is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_set_aside_and_none_is_removed(run: Run, damage: str) -> None:
    said: list[str] = []
    DAMAGES[damage](run.folder / "step-000000030")
    assert run.resume_from(said.append) == run.folder / "step-000000020"
    if damage != "folder missing":
        assert (run.folder / "step-000000030.damaged").exists()
        assert len(said) == 1 and said[0].endswith("; set aside as step-000000030.damaged")
        DAMAGES[damage](run.folder / "step-000000020")
        before = sorted(run.folder.rglob("*"))
        with pytest.raises(
            UserError, match=r"step-000000020/.*; restore it from a copy, or move .* to train"
        ):
            run.resume_from(quiet)
        assert sorted(run.folder.rglob("*")) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_best_model_is_told_and_nothing_is_lost(run: Run, damage: str) -> None:
    DAMAGES[damage](run.best)
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(
        UserError, match=r"best/.*; restore it from a copy, or move .*run away to train"
    ) as error:
        run.resume_from(quiet)
    assert "\n" not in str(error.value)
    assert sorted(run.folder.rglob("*")) == before


def test_a_manifest_without_files_makes_no_checkpoint_whole(run: Run) -> None:
    for content in ("{}", "[]", "null"):
        (run.folder / "step-000000030/manifest.json").write_text(content)
        assert run.newest() == run.folder / "step-000000020"


def test_beginning_afresh_leaves_nothing_of_an_attempt_that_got_nowhere(run: Run) -> None:
    run.log.write_text("rows\n")
    with run.locked(quiet):
        (run.best / "state.json").write_text('{"step": 0}')
        run.begin({"what": "new"})
        assert sorted(path.name for path in run.folder.iterdir()) == ["lock", "run.json"]


def test_beginning_afresh_keeps_a_best_model_whose_checkpoints_are_gone(run: Run) -> None:
    said: list[str] = []
    with run.locked(quiet):
        run.begin({"what": "new"}, said.append)
    assert sorted(path.name for path in run.folder.iterdir()) == ["best.damaged", "run.json"]
    assert said[0].endswith("; set aside as best.damaged")


def test_permanent_checkpoints_stay(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Keep(newest=3, every=40))
    for step in range(0, 101, 10):
        run.save(step, writing(str(step)))
    assert [int(path.name[5:]) for path in run.checkpoints()] == [40, 80, 90, 100]
    run.log.write_text("")
    run.finish({})
    assert [int(path.name[5:]) for path in run.checkpoints()] == [40, 80, 100]


@pytest.mark.parametrize("file", ["metrics.json", "log.csv", "manifest.json"])
def test_figures_that_were_edited_after_the_end_are_not_used(run: Run, file: str) -> None:
    run.log.write_text("rows")
    run.finish({"val_loss": 1.0})
    path = run.finished / file
    path.write_text(path.read_text().replace("1", "0").replace("r", "R"))
    said: list[str] = []
    assert run.metrics(said.append) is None
    assert (run.folder / "finished.damaged").exists() and len(said) == 1
    assert run.resume_from(quiet) == run.folder / "step-000000030", "from which they can be had again"


@pytest.mark.parametrize("replace", [False, True])
def test_a_kill_at_any_moment_of_saving_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    """Every rename and removal in turn is the last thing that a process does."""

    originals = [(os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink"), (os, "mkdir")]
    outcomes = set()
    for moment in range(1000):
        run = Run(tmp_path / str(moment))
        run.save_best(writing("best"))
        run.save(10, writing("old"))
        process = DiesAfter(moment)
        with monkeypatch.context() as patched:
            for module, name in originals:
                patched.setattr(module, name, process.wrap(getattr(module, name)))
            try:
                run.save(10 if replace else 20, writing("new"))
                killed = False
            except Killed:
                killed = True
        with run.locked(quiet):
            newest = run.newest()
        assert newest is not None
        content = (newest / "weights").read_text()
        outcomes.add(content)
        assert killed or content == "new"
        assert not [path for path in run.folder.iterdir() if path.suffix in (".tmp", ".old")]
        if not killed:
            break
    assert moment >= 5
    assert outcomes == {"old", "new"}


def test_best_model_survives_a_kill_between_the_two_renames(run: Run) -> None:
    run.best.rename(run.folder / "best.old")
    save_folder(run.folder / "best.tmp", writing("newer"))
    with run.locked(quiet):
        assert run.newest() is not None
    assert (run.best / "weights").read_text() == "best"


def test_a_failing_write_changes_nothing(run: Run) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("no space left on device")

    before = sorted(run.folder.rglob("*"))
    for save in (lambda: run.save(30, fail), lambda: run.save(40, fail), lambda: run.save_best(fail)):
        with pytest.raises(OSError, match="no space"):
            save()
    assert sorted(run.folder.rglob("*")) == before
    assert damage_of(run.best) is None


def test_checksums_cover_every_file(run: Run) -> None:
    manifest = json.loads((run.best / "manifest.json").read_text())
    assert sorted(manifest) == ["log.csv", "state", "state.json", "weights"]


def test_one_process_at_a_time(run: Run) -> None:
    said: list[str] = []
    waits, entered = threading.Event(), threading.Event()

    def second() -> None:
        def announce(text: str) -> None:
            said.append(text)
            waits.set()

        with Run(run.folder).locked(announce):
            entered.set()

    thread = threading.Thread(target=second)
    with run.locked(quiet):
        thread.start()
        assert waits.wait(10)
        assert not entered.wait(0.05)
    thread.join(10)
    assert entered.is_set()
    pid = os.getpid()
    assert said == [f"process {pid} is training this run; waiting for it (to stop it: kill {pid})"]
