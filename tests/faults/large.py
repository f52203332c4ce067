"""What large corpora need: several processes that tokenize, and a remote for what they made."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.kills import EQUAL
from tests.faults.operations import Inject
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
