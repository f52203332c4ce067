"""Atomic writing: a crash leaves either the old content or the new, never half of it.

Outputs may be read-only hard links into DVC's cache, so these functions replace files and never write into
existing ones.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.storage.lock import is_alive

LEFTOVER = re.compile(r"\..+\.([0-9]+)\.tmp")  # of `write_text`, with the id of its process


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, atomically.

    Raises UserError for a device or a FIFO, which a file would replace for all who use it, and for a folder.
    """
    _check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Replace the content of `path` by `values` as indented JSON, atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def link(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`, in place of a file or link; if that cannot be, do nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(target.absolute())
        os.replace(temporary, path)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise UserError if a file at `path` could not be written: to be called before long work."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write to")
    _check_regular(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{path}: {above} is a file; name a file in another folder")
    if not os.access(above, os.W_OK):
        raise UserError(
            f"{path}: {above} cannot be written to; change its permissions, or name another folder"
        )


def _check_regular(path: Path) -> None:
    """Raise UserError for a device or a FIFO, which a file would replace for all who use it."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; name another file to write to")


def check_room_beside(folder: Path, names: Collection[str]) -> None:
    """Raise UserError if `<folder>.tmp` or `<folder>.old` exists, which `replacing_folder` would delete.

    A killed process may have left them: they may hold files called `names`, and nothing else.
    """
    for path in (folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")):
        found = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
        unknown = {name for name in found if name not in names and not LEFTOVER.fullmatch(name)}
        if unknown and path.exists():
            raise UserError(f"{path} is in the way of writing {folder}; move it, or remove it")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `folder` when the block ends without an error.

    If `folder` is a link, as to a larger disk, the folder that it points to is replaced. Raises UserError if
    the folder cannot be created.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():  # a process was killed between the two renames below
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in temporary.rglob("*"):
        if path.is_file():
            fsync(path)
    fsync(temporary)
    if folder.exists():
        os.rename(folder, old)
        os.rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, folder)
    fsync(folder.parent)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed in `write_text` left beside `path`."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        found = LEFTOVER.fullmatch(file.name)
        if found and not is_alive(int(found[1])):
            file.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
