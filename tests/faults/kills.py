"""Kills, signals and a full disk: the same command again ends as if nothing had happened."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.faults.moments import at_evaluation, at_step
from tests.faults.operations import (
    NEEDS_SPACE,
    Inject,
    full_from,
    killed_at,
    power_cut_at,
    signalled_at,
)
from tests.faults.project import (
    BEFORE,
    COMMANDS,
    Skip,
    World,
    again,
    last_line,
    refused,
    same,
)
from tests.faults.table import Trial, fault

EQUAL = "the same command again ends with the result of an undisturbed run, bit for bit"
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def places(world: World, command: str, below: str = "") -> Iterator[tuple[int, str]]:
    """The numbers, from 1, and names of a command's operations below a folder."""
    for number, place in enumerate(world.places(command), start=1):
        if place.split(" ")[1].startswith(below):
            yield number, place


def drawn(found: Iterable[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """At most so many of these places, always the same ones."""
    every = list(found)
    return sorted(random.Random(0).sample(every, min(most, len(every))))


def dies(command: str, inject: Inject, world: World) -> None:
    """Kill a command somewhere, and run it again."""
    project = world.project(BEFORE[command])
    ended = project(command, inject=inject)
    assert ended.status == -signal.SIGKILL, f"not reached: status {ended.status}: {last_line(ended)}"
    again(project, command, world.reference)


@fault("kill-moment", "`kill -9` of training at 44 seeded moments, four in a row", EQUAL, quick=1)
def kill_moment(world: World) -> Iterator[Trial]:
    for number in range(11):
        yield str(number), partial(_chain, number)


@fault(
    "kill-in-sweep",
    "`kill -9` of `gpt-pipeline scaling` at 12 seeded places",
    "the same command again trains what is missing, and draws the picture of an undisturbed sweep",
    quick=1,
)
def kill_in_sweep(world: World) -> Iterator[Trial]:
    for number, _ in drawn(places(world, "scaling"), 12):
        yield str(number), partial(_in_sweep, number)


def _in_sweep(number: int, world: World) -> None:
    killed, undisturbed = world.project("tokens"), world.project("tokens")
    ended = killed("scaling", inject=killed_at(number))
    assert ended.status == -signal.SIGKILL, f"not reached: status {ended.status}: {last_line(ended)}"
    finished = len(list(killed.folder.glob("runs/*/finished")))
    ended = killed("scaling")
    assert ended.status == 0, f"the same command again: status {ended.status}: {last_line(ended)}"
    assert ended.err.count("already finished") >= finished
    assert undisturbed("scaling").status == 0
    same(killed, undisturbed.outcome(), "results/scaling.png")


def _chain(seed: int, world: World) -> None:
    draw, project = random.Random(seed), world.project("tokens")
    for _ in range(4):
        child = project.start("train")
        time.sleep(draw.uniform(0.0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    again(project, "train", world.reference)


def register_kills(name: str, command: str, below: str, what: str, quick: int = 2) -> None:
    """The rows `kill-in-<name>` and `power-cut-in-<name>`."""

    @fault(
        f"kill-in-{name}",
        f"`kill -9` in the middle of every write, sync, rename and removal while {what}",
        EQUAL,
        quick=quick,
    )
    def kill(world: World) -> Iterator[Trial]:
        for number, _ in places(world, command, below):
            yield str(number), partial(dies, command, killed_at(number))

    @fault(
        f"power-cut-in-{name}",
        f"the same at up to 20 of these places, and files that were not synced are cut in half, while {what}",
        EQUAL,
        quick=quick,
    )
    def power_cut(world: World) -> Iterator[Trial]:
        for number, _ in drawn(places(world, command, below), 20):
            yield str(number), partial(dies, command, power_cut_at(number))


register_kills("download", "download", "", "text is downloaded")
register_kills("tokenize", "tokenize", "", "text is cut into tokens", quick=2)
register_kills("save", "train", "runs", "checkpoints and the best model are saved", quick=4)
register_kills("publish", "train", "results", "a finished run is published", quick=4)
register_kills("eval", "eval", "", "a baseline is evaluated", quick=1)
register_kills("depth", "depth", "", "the depth curve is written", quick=0)
register_kills("report", "report", "", "the report is written", quick=0)
register_kills("sample", "sample", "", "samples are written", quick=1)
register_kills("export", "export", "", "a model is exported", quick=2)


def register_signal(number: signal.Signals) -> None:
    @fault(
        f"signal-{number.name[3:].lower()}",
        f"{number.name}, once and twice, in a step, an evaluation and a save",
        f"the state is saved, the status is {STATUS[number]}, and {EQUAL}",
        quick=2,
    )
    def signals(world: World) -> Iterator[Trial]:
        saves = [at for at, place in places(world, "train", "runs") if "000000020.tmp" in place]
        for times, word in ((1, "once"), (2, "twice")):
            sent = [number] * times
            in_places: dict[str, Inject] = {
                "step": at_step(25, partial(_send, sent)),
                "evaluation": at_evaluation(2, partial(_send, sent)),
                "save": signalled_at(saves[0], sent),
            }
            for place, inject in in_places.items():
                yield f"{place}-{word}", partial(_signalled, number, times, inject)


for one in STATUS:
    register_signal(one)


def _send(signals: list[signal.Signals], *_: object) -> None:
    for number in signals:
        os.kill(os.getpid(), number)
        time.sleep(0.01)


def _signalled(number: signal.Signals, times: int, inject: Inject, world: World) -> None:
    project = world.project("tokens")
    ended = project("train", inject=inject)
    assert "Traceback" not in ended.err, f"a traceback: {last_line(ended)}"
    if times == 1:
        assert ended.status == STATUS[number], (
            f"status {ended.status}, not {STATUS[number]}: {last_line(ended)}"
        )
        newest = [path.name for path in project.checkpoints()][-1:]
        assert newest and newest[0] >= "step-000000020", f"not saved: {newest or 'no checkpoint'}"
    else:
        assert ended.status in (STATUS[number], -number), f"status {ended.status}: {last_line(ended)}"
    again(project, "train", world.reference)


@fault(
    "full-disk",
    "from up to 12 seeded places of each command on, whatever needs room on the disk fails",
    f"one line says so, the status is 2, and with room again {EQUAL}",
    quick=0,
)
def full_disk(world: World) -> Iterator[Trial]:
    for command in BEFORE:
        needing = [found for found in places(world, command) if found[1].split(" ")[0] in NEEDS_SPACE]
        for number, _ in drawn(needing, 12):
            yield f"{command}-{number}", partial(_no_room, command, full_from(number))


def _no_room(command: str, inject: Inject, world: World) -> None:
    project = world.project(BEFORE[command])
    refused(project(command, inject=inject))
    again(project, command, world.reference)


@fault(
    "full-tmpfs",
    "each command on a file system in memory with 0, 8 and 32 KiB left (Linux, as root)",
    f"the command ends well, or one line says why not and the status is 2; with room again {EQUAL}",
)
def full_tmpfs(world: World) -> Iterator[Trial]:
    for command in BEFORE:
        for room in (0, 8, 32):
            yield f"{command}-{room}", partial(_on_tmpfs, command, room)


def _on_tmpfs(command: str, room: int, world: World) -> None:
    place = world.folder / "tmpfs"
    place.mkdir()
    _unshare()
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    project = world.project(BEFORE[command], place / "project")
    project.outputs = world.folder / "outputs"
    used = os.statvfs(place)
    kib = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024
    _mount("-o", f"remount,size={kib + room}k", str(place))
    ended = project(command)
    if ended.status:
        refused(ended)
    _mount("-o", "remount,size=64m", str(place))
    again(project, command, world.reference)


def _unshare() -> None:
    """Give this trial mounts of its own."""
    clone_newns = 0x00020000
    try:
        failed = ctypes.CDLL(None).unshare(clone_newns)
    except AttributeError:
        failed = -1
    if failed:
        raise Skip("no file system can be mounted here")


def _mount(*arguments: str) -> None:
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        raise Skip("no file system can be mounted here")


@fault(
    "file-size-limit",
    "`ulimit -f` at a half of each command's largest file, and at 1 KiB",
    f"one line says so, the status is 2, and without the limit {EQUAL}",
)
def file_size_limit(world: World) -> Iterator[Trial]:
    for command in BEFORE:
        for limit in ("half", "1024"):
            yield f"{command}-{limit}", partial(_limited, command, limit)


def _limited(command: str, limit: str, world: World) -> None:
    project, whole = world.project(BEFORE[command]), world.project("trained")
    sizes = [(whole.folder / name).stat().st_size for name in whole.files(*COMMANDS[command][2])]
    sizes += [path.stat().st_size for name in COMMANDS[command][2] if (path := whole.folder / name).is_file()]
    most = max(sizes) // 2 if limit == "half" else int(limit)

    def inject(_: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    ended = project(command, inject=inject)
    if ended.status or most < max(sizes):
        refused(ended)
    again(project, command, world.reference)


@fault(
    "kill-trainer-of-dvc",
    "`kill -9` of the training that `dvc repro` started, at 6 seeded checkpoints",
    "`dvc repro` fails, and the next `dvc repro` ends with the result of an undisturbed run",
    dvc=True,
)
def kill_trainer(world: World) -> Iterator[Trial]:
    for step in sorted(random.Random(1).sample(range(10, 400, 10), 6)):
        yield str(step), partial(_under_dvc, step, _kill_trainer)


@fault(
    "kill-parent",
    "only `dvc` gets SIGKILL, SIGTERM or SIGHUP while its training runs; `dvc repro` again at once",
    "both never write the same run at once, and the next `dvc repro` ends as an undisturbed one",
    dvc=True,
)
def kill_parent(world: World) -> Iterator[Trial]:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        yield number.name, partial(_under_dvc, 100, partial(_signal_parent, number))


@fault(
    "kill-group",
    "`dvc` and all its processes get SIGKILL, SIGTERM, SIGHUP or SIGINT while training runs",
    "the next `dvc repro` ends as an undisturbed one",
    dvc=True,
)
def kill_group(world: World) -> Iterator[Trial]:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        yield number.name, partial(_under_dvc, 100, partial(_signal_group, number))


Hurt = Callable[["subprocess.Popen[bytes]", int], None]


def _under_dvc(step: int, hurt: Hurt, world: World) -> None:
    """Stop training under `dvc repro` where it stands after a step's checkpoint, hurt it, and repeat."""
    project = world.project("dvc")
    with (world.folder / "dvc.txt").open("wb") as output:
        dvc = subprocess.Popen(
            ["dvc", "repro", "train"], cwd=project.folder, env=project.environment, stdout=output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        trainer = _trainer(project.folder, step, dvc)
        hurt(dvc, trainer)
        ended = project.process("dvc repro")
        assert ended.status == 0, f"`dvc repro` again: {last_line(ended)}"
        dvc.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(dvc.pid, signal.SIGKILL)
    same(project, world.dvc_reference)


def _trainer(folder: Path, step: int, dvc: subprocess.Popen[bytes]) -> int:
    """The process that trains, stopped by SIGSTOP once it has saved a step."""
    while dvc.poll() is None:
        newest = max((path.name for path in folder.glob("runs/*/step-?????????")), default="")
        if newest >= f"step-{step:09d}":
            trainer = int(next(folder.glob("runs/*/lock")).read_text())
            os.kill(trainer, signal.SIGSTOP)
            return trainer
        time.sleep(0.002)
    raise AssertionError(f"`dvc repro` ended before step {step}")


def _kill_trainer(dvc: subprocess.Popen[bytes], trainer: int) -> None:
    os.kill(trainer, signal.SIGKILL)
    assert dvc.wait(60) != 0, "`dvc repro` says that all is well"


def _signal_parent(number: signal.Signals, dvc: subprocess.Popen[bytes], trainer: int) -> None:
    os.kill(dvc.pid, number)
    dvc.wait(60)
    os.kill(trainer, signal.SIGCONT)


def _signal_group(number: signal.Signals, dvc: subprocess.Popen[bytes], trainer: int) -> None:
    os.killpg(dvc.pid, number)
    os.kill(trainer, signal.SIGCONT)
    dvc.wait(60)
