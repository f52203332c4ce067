"""What changes between two runs, or around one: parameters, code, the clock, folders, streams, a NaN."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import shutil
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests import tiny
from tests.faults.company import MAKING
from tests.faults.kills import EQUAL
from tests.faults.moments import at_step
from tests.faults.project import BEFORE, Project, Skip, World, again, last_line, refused, same
from tests.faults.table import Trial, fault

TRAINED = ("results/model", "results/log.csv", "results/metrics.json")


@fault(
    "clock-back",
    "the clock jumps back by an hour, or by ten years, while training runs",
    "training ends as an undisturbed run",
    quick=1,
)
def clock_back(world: World) -> Iterator[Trial]:
    for name, seconds in (("hour", 3600), ("ten-years", 10 * 365 * 86400)):
        yield name, partial(_jump, seconds)


def _jump(seconds: int, world: World) -> None:
    def jump(_: object) -> None:
        now, now_ns = time.time, time.time_ns
        setattr(time, "time", lambda: now() - seconds)  # noqa: B010
        setattr(time, "time_ns", lambda: now_ns() - seconds * 10**9)  # noqa: B010

    project = world.project("tokens")
    ended = project("train", inject=at_step(15, jump))
    assert ended.status == 0, last_line(ended)
    same(project, world.reference, *TRAINED)


@fault(
    "not-finite",
    "the loss, or one gradient, is NaN in step 25 (the 25th step of the process)",
    f"it stops before the update, an incident file says where, the status is 3; without the NaN {EQUAL}",
)
def not_finite(world: World) -> Iterator[Trial]:
    for what in ("loss", "gradient"):
        yield what, partial(_not_finite, what)


def _not_finite(what: str, world: World) -> None:
    def poison(model: Any) -> None:
        if what == "gradient":
            next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        else:
            embedding = next(part for part in model.modules() if isinstance(part, torch.nn.Embedding))
            embedding.register_forward_hook(lambda *found: found[-1] * float("nan"))

    project = world.project("tokens")
    refused(project("train", inject=at_step(24, poison)), status=3)
    incidents = [path for path in (project.folder / "runs").rglob("*incident*") if path.is_file()]
    assert len(incidents) == 1, f"{len(incidents)} incident files"
    text = incidents[0].read_text()
    assert "24" in text or "25" in text, f"the incident file does not name the step: {text[:200]}"
    again(project, "train", world.reference)


@fault(
    "parameters-changed",
    "other parameters for the next training: more steps, other intervals, another seed and back",
    "what is published equals a fresh run under the new parameters; the first steps are not done again where "
    "they would be the same; no other run is lost",
)
def parameters_changed(world: World) -> Iterator[Trial]:
    yield "more-steps", partial(_changed, ["train.max_iters=20"], [], "continuing after step 20")
    yield "more-steps-other-evaluations", partial(_changed, ["train.max_iters=30"], [], "")
    yield "fewer-steps", partial(_changed, [], ["train.max_iters=20"], "")
    yield "eval-interval", partial(_changed, None, ["train.eval_interval=10"], "")
    yield (
        "checkpoint-interval",
        partial(_changed, None, ["runtime.checkpoint_interval=3"], "continuing after"),
    )
    yield "log-interval", partial(_changed, None, ["log.log_interval=1"], "")
    yield "seed-and-back", _seed_and_back


def _options(values: list[str]) -> list[str]:
    return [word for value in values for word in ("-S", value)]


def _changed(first: list[str] | None, then: list[str], says: str, world: World) -> None:
    """Train with `first` (None: until it is killed), then with `then`, which must equal a fresh run of it."""
    fresh = world.project("tokens")
    assert fresh("train", *_options(then)).status == 0
    project = world.project("interrupted" if first is None else "tokens")
    if first is not None:
        ended = project("train", *_options(first))
        assert ended.status == 0, last_line(ended)
    ended = project("train", *_options(then))
    assert ended.status == 0, last_line(ended)
    # The rows of a log up to a change of its interval are those that were asked for then.
    names = [name for name in TRAINED if "log.log_interval=1" not in then or name != "results/log.csv"]
    same(project, fresh.outcome(), *names)
    assert says in ended.err, f"{says!r} is not said: {ended.err.splitlines()[:2]}"


def _seed_and_back(world: World) -> None:
    project = world.project("trained")
    before = {name: content for name, content in project.tree().items() if name.startswith("runs/")}
    ended = project("train", "-S", "train.seed=2")
    assert ended.status == 0, last_line(ended)
    after = project.tree()
    assert all(after.get(name) == content for name, content in before.items()), "the first run has changed"
    ended = again(project, "train", world.reference)
    assert "already finished" in ended.err, "the first run is trained again"


@fault(
    "code-changed",
    "a comment, or a statement, in the training code after an interrupted run; the statement removed again",
    "a comment changes nothing; a statement starts afresh, keeps the old run and names the file; the old "
    "code continues the old run",
)
def code_changed(world: World) -> Iterator[Trial]:
    yield "comment", partial(_edit_code, "\n# changed\n", "continuing after step 30", None)
    yield "statement", partial(_edit_code, "\nUNUSED = 1\n", "train/loop.py", "run.json")
    yield "statement-and-back", _edit_and_undo


def _with_code(world: World) -> tuple[Project, Path]:
    """An interrupted run with a copy of the code."""
    project = world.project("interrupted")
    for name in ("pipeline", "stages"):
        shutil.copytree(tiny.ROOT / name, project.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return project, project.folder / "pipeline/train/loop.py"


def _edit_code(addition: str, says: str, record: str | None, world: World) -> None:
    project, module = _with_code(world)
    old = project.runs()[0]
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and path.name != "lock"}
    module.write_text(module.read_text() + addition)
    ended = project.process("python -m stages.train")
    assert ended.status == 0, last_line(ended)
    assert says in ended.err, f"{says!r} is not said: {ended.err.splitlines()[:2]}"
    same(project, world.reference, *TRAINED)
    if record:
        kept = all(path.exists() and path.read_bytes() == content for path, content in before.items())
        assert kept, "the old run has changed"
        assert (project.folder / "results" / record).exists(), f"no results/{record} records it"


def _edit_and_undo(world: World) -> None:
    project, module = _with_code(world)
    text = module.read_text()
    module.write_text(text + "\nUNUSED = 1\n")
    assert project.process("python -m stages.train").status == 0
    module.write_text(text)
    ended = project.process("python -m stages.train")
    assert ended.status == 0, last_line(ended)
    assert "continuing after step 30" in ended.err, f"it starts afresh: {ended.err.splitlines()[:2]}"
    same(project, world.reference, *TRAINED)


@fault(
    "folder-linked",
    "each folder of data and results is a symbolic link to a folder elsewhere, empty or filled",
    "all commands end as undisturbed, and what they write is behind the link, which is still one",
)
def folder_linked(world: World) -> Iterator[Trial]:
    folders = (
        "data",
        "data/tiny/raw",
        "data/tiny/char",
        "runs",
        "results",
        "results/model",
        "results/export",
    )
    for name in folders:
        for state in ("raw", "trained"):
            yield f"{name}-{state}", partial(_linked, name, state)


def _linked(name: str, state: str, world: World) -> None:
    project, elsewhere = world.project(state), world.folder / "elsewhere"
    link = project.folder / name
    if link.exists():
        shutil.move(link, elsewhere)
    else:
        elsewhere.mkdir()
        link.parent.mkdir(exist_ok=True, parents=True)
    link.symlink_to(elsewhere)
    for command in MAKING:
        ended = project(command)
        assert ended.status == 0, f"{command}: {last_line(ended)}"
    same(project, world.reference)
    assert link.is_symlink() and any(elsewhere.iterdir()), "the link is replaced by a folder"


@fault(
    "folder-read-only",
    "the folder that each command writes to allows no writing (root gives up its right to do so)",
    f"one line says so, the status is 2, and with the permission {EQUAL}",
)
def folder_read_only(world: World) -> Iterator[Trial]:
    for command in BEFORE:
        folder = {"download": "data/tiny", "tokenize": "data/tiny", "train": "runs"}.get(command, "results")
        yield command, partial(_read_only, command, folder)
    yield "train-results", partial(_read_only, "train", "results")


def _read_only(command: str, folder: str, world: World) -> None:
    if os.geteuid() == 0:
        _obey_permissions()
    project = world.project(BEFORE[command])
    locked = project.folder / folder
    locked.mkdir(exist_ok=True)
    inside = [locked, *(path for path in locked.rglob("*") if path.is_dir())]
    for path in inside:
        path.chmod(0o555)
    refused(project(command))
    for path in inside:
        path.chmod(0o755)
    again(project, command, world.reference)


def _obey_permissions() -> None:
    """Give up root's right to write anywhere (capabilities 1 and 2), for the rest of this trial."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    try:
        libc = ctypes.CDLL(None)
        failed = libc.capget(header, sets)
        sets[0] &= ~0b110
        failed = failed or libc.capset(header, sets)
    except AttributeError:
        failed = -1
    if failed:
        raise Skip("root may write anywhere here")


# `status` keeps the exit status, which a pipe hides.
STREAMS = {
    "no-stdout": "python -m stages.train >&-; echo $? >status",
    "no-stderr": "python -m stages.train 2>&-; echo $? >status",
    "neither": "python -m stages.train >&- 2>&-; echo $? >status",
    "stdout-ends": "(python -m stages.train; echo $? >status) | true",
    "stderr-ends": "(python -m stages.train 2>&1 >/dev/null; echo $? >status) | true",
    "both-end": "(python -m stages.train 2>&1; echo $? >status) | true",
}


@fault(
    "streams-closed",
    "training with stdout and stderr closed (`>&-`, `2>&-`), or pipes that nobody reads, in a shell",
    "training ends well, as an undisturbed run",
)
def streams_closed(world: World) -> Iterator[Trial]:
    for name, shell in STREAMS.items():
        yield name, partial(_with_streams, shell)


def _with_streams(shell: str, world: World) -> None:
    project = world.project("tokens")
    ended = project.process(shell)
    status = (project.folder / "status").read_text().strip()
    saved = [path.name for path in project.checkpoints()] or ["nothing"]
    assert status == "0", f"status {status}, {saved[-1]} is saved: {last_line(ended)}"
    same(project, world.reference, *TRAINED)


@fault(
    "terminal-lost",
    "the terminal goes away while training runs in it",
    f"the state is saved, the status is 129, and {EQUAL}",
)
def terminal_lost(world: World) -> Iterator[Trial]:
    yield "lost", _lose_terminal


def _lose_terminal(world: World) -> None:
    project, marker = world.project("tokens"), world.folder / "training"
    terminal, inside = pty.openpty()

    def inject(root: Path) -> None:
        os.close(terminal)
        os.setsid()
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
        os.dup2(inside, 1)
        os.dup2(inside, 2)
        os.close(inside)
        at_step(15, _wait_after(marker))(root)

    child = project.start("train", inject=inject)
    os.close(inside)
    deadline = time.monotonic() + 30
    while not marker.exists() and time.monotonic() < deadline:
        os.set_blocking(terminal, False)
        _drain(terminal)
        time.sleep(0.002)
    os.close(terminal)
    ended = child.wait()
    assert ended.status == 129, f"status {ended.status}: {last_line(ended)}"
    assert [path.name for path in project.checkpoints()][-1] >= "step-000000015", "not saved"
    again(project, "train", world.reference)


def _wait_after(marker: Path) -> Callable[[Any], None]:
    def act(_: object) -> None:
        marker.touch()
        time.sleep(0.5)

    return act


def _drain(terminal: int) -> None:
    with suppress(OSError):
        os.read(terminal, 4096)
