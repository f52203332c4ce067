"""What large corpora need: several processes that tokenize, and a remote for what they made."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.kills import EQUAL
from tests.faults.operations import Inject, killed_at, recorded
from tests.faults.project import Project, World, last_line, refused, same
from tests.faults.table import Trial, fault

PARTS = "data/tiny/char.part/tasks"
FILES = 60  # as many parts, each encoded by a task


@fault(
    "kill-tokenizing-worker",
    "`kill -9` of one of two processes that encode parts of a corpus, of the stage that started them, and a "
    "bit flipped in a part that is finished",
    f"one line says that a worker was killed; the finished parts are not encoded again; {EQUAL}",
)
def kill_tokenizing_worker(world: World) -> Iterator[Trial]:
    for hurt in ("worker", "stage", "worker-and-bit"):
        yield hurt, partial(_kill_tokenizing, hurt)


def in_parts(hurt: str = "") -> Inject:
    """Any corpus counts as large. `hurt` names what is killed when two parts are finished."""

    def inject(root: Path) -> None:
        from pipeline.tokens import parts, write_shards

        setattr(write_shards, "LARGE_CORPUS", 0)  # noqa: B010
        setattr(parts, "PART_BYTES", 150)  # noqa: B010

        def kill() -> None:
            while len(completed(root)) < 2:
                time.sleep(0.001)
            worker = multiprocessing.active_children()[0].pid
            os.kill(os.getpid() if hurt == "stage" else worker or 0, signal.SIGKILL)

        if hurt:
            threading.Thread(target=kill, daemon=True).start()

    return inject


def completed(root: Path) -> list[str]:
    folder = root / PARTS / "completions"
    return sorted(os.listdir(folder)) if folder.exists() else []


def in_files(world: World) -> Project:
    """A project whose text is in several files."""
    project = world.project("downloaded")
    raw = project.folder / "data/tiny/raw"
    (source,) = raw.glob("*.txt")
    text = source.read_text()
    for path in raw.iterdir():
        path.unlink()
    size = len(text) // FILES + 1
    for number in range(FILES):
        (raw / f"{number:02d}.txt").write_text(text[number * size : (number + 1) * size])
    return project


def _kill_tokenizing(hurt: str, world: World) -> None:
    undisturbed, project = in_files(world), in_files(world)
    assert undisturbed("tokenize").status == 0
    ended = project("tokenize", "-S", "runtime.workers=2", inject=in_parts(hurt.partition("-")[0]))
    if hurt == "stage":
        assert ended.status == -signal.SIGKILL, f"status {ended.status}: {last_line(ended)}"
    else:
        refused(ended)
        assert "a worker was killed" in last_line(ended)
    done = completed(project.folder)
    assert 2 <= len(done) < FILES, f"{len(done)} parts are finished"
    kept = len(done)
    if hurt == "worker-and-bit":
        part = project.folder / PARTS / f"{done[0]}.bin"
        part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
        kept -= 1
    ended = project("tokenize", "-S", "runtime.workers=1", inject=in_parts())
    assert ended.status == 0, f"again: {last_line(ended)}"
    assert f"{kept} of {FILES} parts are encoded already" in ended.err, "not kept, or a damaged part is used"
    same(project, undisturbed.outcome(), "data/tiny/char")


MOST = 8


@fault(
    "kill-in-push-and-pull",
    f"`kill -9` of `push-data` and `pull-data` at {MOST} seeded writes, syncs, renames and removals each, "
    "here and on the remote",
    "the same command again ends well, or one line asks to remove DVC's file of locks first; what was pulled "
    "is what was pushed, and `dvc repro` does not make it again",
    dvc=True,
)
def kill_in_push_and_pull(world: World) -> Iterator[Trial]:
    maker, user = projects(world, world.folder / "pushed")
    for command, project in (("push-data", maker), ("pull-data", user)):
        number = operations(project, command)
        for place in sorted(random.Random(command).sample(range(1, number + 1), min(MOST, number))):
            yield f"{command}-{place}", partial(_kill_moving, command, place)


def projects(world: World, folder: Path) -> tuple[Project, Project]:
    """One that has made text and tokens, and one that has not."""
    folder.mkdir()
    maker, user = (world.project("dvc", folder / name) for name in ("maker", "user"))
    for path in (user.folder / "data/tiny/raw", user.folder / "data/tiny/char", user.folder / ".dvc/cache"):
        shutil.rmtree(path)
    (user.folder / "dvc.lock").unlink()
    return maker, user


def operations(project: Project, command: str) -> int:
    """How many changes of files here and on the remote a command makes. It is run to its end."""
    names: list[str] = []
    count = project.folder.with_suffix(".count")

    def inject(root: Path) -> None:
        recorded(names)(root.parent)
        atexit.register(lambda: os.write(os.open(count, os.O_CREAT | os.O_WRONLY), b"%d" % len(names)))

    ended = project(command, inject=inject)
    assert ended.status == 0, f"{command}: {last_line(ended)}"
    return int(count.read_bytes())


def _kill_moving(command: str, place: int, world: World) -> None:
    maker, user = projects(world, world.folder / "moved")
    hurt = maker if command == "push-data" else user
    if hurt is user:
        assert maker("push-data").status == 0
    ended = hurt(command, inject=lambda root: killed_at(place)(root.parent))
    assert ended.status == -signal.SIGKILL, f"not reached: status {ended.status}: {last_line(ended)}"
    for project, again in ((maker, "push-data"), (user, "pull-data")):
        ended = project(again)
        if "error: .dvc/tmp/rwlock: " in ended.err:  # DVC does not write it atomically
            refused(ended)
            (project.folder / ".dvc/tmp/rwlock").unlink()
            ended = project(again)
        assert ended.status == 0, f"{again}: status {ended.status}: {last_line(ended)}"
    same(user, maker.outcome(), "data")
    ended = user.process("dvc repro check_tokens")
    assert ended.status == 0, f"`dvc repro`: {last_line(ended)}"
    assert "stages.download" not in ended.out and "stages.tokenize" not in ended.out, "it makes them again"
