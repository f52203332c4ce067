"""What crashes and kills left behind in a project, who is at work in it, and what to do. Nothing private."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.paths import DATA, RESULTS, RUN_LOCK, SAVED, runs_folder
from pipeline.storage.lock import holder, is_alive
from pipeline.storage.machine import binary, disk
from pipeline.train.runs import DAMAGED, Run

DVC = Path(".dvc/tmp")
LITTLE_ROOM = 1 << 30  # bytes
RUNS_SHOWN = 5


def unfinished_runs() -> Iterator[str]:
    """Each run that is not finished, newest first: how far it came, its size, and who trains it."""
    runs = [run for run in _runs() if not run.finished.exists()]
    runs.sort(key=lambda run: run.folder.stat().st_mtime, reverse=True)
    for run in runs[:RUNS_SHOWN]:
        checkpoints = run.checkpoints()
        step = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        lock = run.folder / RUN_LOCK
        if (trainer := holder(lock)) is not None:
            advice = f"process {trainer} is training it"
        else:
            killed = "its process was killed, and " if lock.exists() else ""
            advice = f"{killed}the same parameters continue it; `rm -r runs/{run.folder.name}` forgets it"
        yield f"{run.folder.name}: step {step:,}{_of_steps(run)}, {binary(_size([run.folder]))}; {advice}"
    if len(runs) > RUNS_SHOWN:
        yield f"and {len(runs) - RUNS_SHOWN} more, older ones"


def _of_steps(run: Run) -> str:
    try:
        return f" of {run.facts()['train']['max_iters']:,}"
    except (UserError, KeyError, TypeError, ValueError):
        return ""


def at_work() -> Iterator[str]:
    """The processes that write to this project now."""
    for path in _locks():
        if (pid := holder(path)) is not None:
            yield f"process {pid} is {'training a run' if path.name == RUN_LOCK else 'writing a folder'}"
    if (pid := holder(DVC / "lock")) is not None:
        yield f"process {pid} is running dvc"


def room() -> Iterator[str]:
    for folder in (DATA, runs_folder(), RESULTS, Path(".dvc/cache")):
        if folder.exists() and not os.access(folder, os.W_OK):
            yield f"{_name(folder)} cannot be written to; `chmod -R u+w {_name(folder)}`, or run as its owner"
        elif (free := disk(folder).free) < LITTLE_ROOM:
            yield f"only {binary(free)} are free for {_name(folder)}; `dvc gc -w` removes what no result uses"


def leftovers() -> Iterator[str]:
    """What killed processes did not finish, if none is at work that may have it open."""
    if any(at_work()):
        return
    folders = [*DATA.glob("*"), *(run.folder for run in _runs()), RESULTS, SAVED]
    names = ("*.tmp", "*.old", ".*.tmp", ".*.old")
    found = sorted({path for folder in folders for name in names for path in folder.glob(name)})
    if found:
        yield (
            f"{len(found)} unfinished writes of killed processes, {binary(_size(found))}; their command "
            "removes them when it runs again; to do it now: "
            "`find data runs results saved \\( -name '*.tmp' -o -name '*.old' \\) -exec rm -r {} +`"
        )
    parts = [path for name in ("*.part", ".*.part") for path in DATA.glob(f"*/{name}")]
    if parts:
        yield (
            f"{len(parts)} downloads or tokenizations that were interrupted, {binary(_size(parts))}; "
            "`dvc repro` goes on with them, `rm -r data/*/*.part` starts them over"
        )


def set_aside() -> Iterator[str]:
    """Damaged folders of runs that were set aside, and steps that were not finite."""
    for run in _runs():
        name = f"runs/{run.folder.name}"
        if damaged := sorted(run.folder.glob(f"*{DAMAGED}")):
            names = ", ".join(path.name for path in damaged)
            yield (
                f"{name}: set aside because it did not verify: {names}, {binary(_size(damaged))}; "
                f"`make verify` checks the rest, `rm -r {name}/*{DAMAGED}` frees the disk"
            )
        if (run.folder / "incident.json").exists() and not run.finished.exists():
            yield f"{name}/incident.json: a loss or gradient was not finite; lower train.learning_rate"


def dvc_state() -> Iterator[str]:
    """Locks and experiments that DVC left behind."""
    lock = DVC / "rwlock"
    if lock.exists():
        try:
            dead = sorted({pid for pid in _pids(json.loads(lock.read_text())) if not is_alive(pid)})
        except (ValueError, OSError, RecursionError):
            yield f"{lock} is damaged; `rm {lock}`"
        else:
            if dead:
                yield (
                    f"{lock} names dead processes ({', '.join(map(str, dead))}); dvc removes them by itself; "
                    f'if it says "is busy", `rm {lock}`'
                )
    copies = [path for place in ("exps", "exps/standalone") for path in (DVC / place).glob("tmp*")]
    stale = [path for path in copies if holder(path / DVC / "lock") is None and not _in_use(path)]
    if stale:
        names = " ".join(map(str, stale))
        yield f"{len(stale)} copies of experiments that ended, {binary(_size(stale))}; `rm -r {names}`"
    if queued := len(list((DVC / "exps/celery/broker/in").glob("*.celery.msg"))):
        yield (
            f"{queued} experiments wait in the queue; `dvc queue start` runs them, "
            "`dvc queue remove --queued` forgets them"
        )


TROUBLES: tuple[Callable[[], Iterator[str]], ...] = (room, leftovers, set_aside, dvc_state)


def runs_in_short() -> str:
    """How many runs there are, and how large they are."""
    runs = list(_runs())
    finished = sum(run.finished.exists() for run in runs)
    size = binary(_size(run.folder for run in runs))
    return f"{finished} finished, {len(runs) - finished} unfinished, {size}"


def _runs() -> Iterator[Run]:
    return (Run(path) for path in sorted(runs_folder().glob("*/")))


def _locks() -> list[Path]:
    """The lock files of runs and of folders of data and results."""
    folders = (*DATA.glob("*"), RESULTS, SAVED)
    locks = [path for folder in folders for path in sorted(folder.glob(".*.lock"))]
    return [*locks, *(path for run in _runs() if (path := run.folder / RUN_LOCK).exists())]


def _pids(value: object) -> Iterator[int]:
    """Every process id anywhere in DVC's lock file."""
    if isinstance(value, dict):
        if isinstance(value.get("pid"), int):
            yield value["pid"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _pids(part)


def _in_use(copy: Path) -> bool:
    """Whether the process that runs an experiment in a copy of the project is alive."""
    try:
        return any(map(is_alive, _pids(json.loads((copy / DVC / "rwlock").read_text()))))
    except (ValueError, OSError, RecursionError):
        return False


def _name(folder: Path) -> str:
    return f"{'runs' if folder == runs_folder() else folder}/"


def _size(paths: Iterable[Path]) -> int:
    """The bytes of files and of the files in folders."""
    total = 0
    for path in paths:
        for file in (path, *path.rglob("*")):
            try:
                total += file.lstat().st_size if file.is_file() else 0
            except OSError:
                continue  # it was removed just now
    return total
