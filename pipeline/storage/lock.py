"""One writer at a time: locks on files, which a process that dies releases."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.config.errors import UserError


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`, and remove it at the end.

    If another process holds it, call `busy` with that process's id, then wait. Raises UserError if the file
    cannot be created.
    """
    while True:
        with _open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy(_holder(file))
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):
                continue  # its holder removed it while this process waited
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only process that replaces `folder`; wait, with a message, for one that does it now."""
    real = folder.resolve()

    def busy(holder: str) -> None:
        print(f"process {holder} is writing {folder}; waiting for it", file=sys.stderr)

    with locked(real.with_name(f".{real.name}.lock"), busy):
        yield


def holder(path: Path) -> str | None:
    """The id of the process that holds a lock file now; None if no process does.

    To find out, a free lock is held for an instant.
    """
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file)
    except OSError:
        pass  # there is no lock, or it cannot be read
    return None


def is_alive(process: int) -> bool:
    """Whether a process of this id runs, whoever owns it."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); use another folder"
        ) from None


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
