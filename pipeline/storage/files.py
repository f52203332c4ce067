"""Atomic writing: a crash leaves either the old content or the new, never half of it.

Outputs may be read-only hard links into DVC's cache, so these functions replace files and never write into
existing ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
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


def check_room_beside(folder: Path) -> None:
    """Raise UserError if `<folder>.tmp` or `<folder>.old` exists; `replacing_folder` would delete it."""
    for path in (folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")):
        if path.exists():
            raise UserError(f"{path} is in the way of writing {folder}; move it, or remove it")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `folder` when the block ends without an error.

    If `folder` is a link, as to a larger disk, the folder that it points to is replaced. Raises UserError if
    the folder cannot be created.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    temporary = folder.with_name(folder.name + ".tmp")
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
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        os.rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, folder)
    fsync(folder.parent)


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
