"""DVC's cache: a file for each content, called by its md5. Data and results may be links to these files."""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

NAME = re.compile(r"([0-9a-f]{30})(\.dir)?")  # after the first two digits, which are the folder's name


def objects() -> Iterator[tuple[Path, str]]:
    """Each object in the cache, with the md5 that its content had when it was written."""
    for path in sorted(_folder().glob("??/*")):
        if name := NAME.fullmatch(path.name):
            yield path, path.parent.name + name[1]


def object_path(md5: str) -> Path:
    """Where the content with this md5 is, if the cache has it."""
    return _folder() / md5[:2] / md5[2:]


def remove_damaged(md5: Callable[[Path], str], say: Callable[[str], None]) -> None:
    """Remove the objects that are not what was written, and say so.

    DVC trusts its cache, and would put a damaged result back instead of making it again.
    """
    for path, expected in objects():
        if md5(path) != expected:
            linked = ", ".join(map(str, links_to(path, Path("data"), Path("results"))))
            say(f"{path}: damaged since it was written, and removed; it was {linked or 'an earlier result'}")
            path.unlink()


def links_to(path: Path, *folders: Path) -> list[Path]:
    """The files in `folders` that share their content with the file at `path`."""
    known = file_identity(path)
    found = (
        Path(parent, name) for folder in folders for parent, _, names in os.walk(folder) for name in names
    )
    return [other for other in found if known is not None and file_identity(other) == known]


def file_identity(path: Path) -> tuple[int, int] | None:
    """What all links to a file share; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _folder() -> Path:
    """Where the objects are: in .dvc/cache, unless DVC's configuration says otherwise."""
    config = configparser.RawConfigParser(strict=False)
    with suppress(configparser.Error, UnicodeDecodeError):
        config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    folder = config.get("cache", "dir", fallback="cache").strip("\"'")
    return Path(".dvc", folder, "files", "md5")
