"""DVC's cache: a file for each content, called by its md5. Data and results may be links to these files."""

from __future__ import annotations

import configparser
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from platformdirs import site_config_path, user_config_path

from pipeline.config.errors import UserError
from pipeline.config.validation import read_yaml

LOCKS = (Path("dvc.lock"), Path("stages/dvc.lock"))
SET_ASIDE = Path(".dvc/tmp/damaged")
NAME = re.compile(r"([0-9a-f]{30})(\.dir)?")  # after the first two digits, which are the folder's name
COMPLETE = 0o444  # the mode that DVC gives an object at last; it hashes any other before it uses it


class Output(NamedTuple):
    """A file that a stage wrote, or the list of the files in a folder, whose md5 ends in `.dir`."""

    path: Path
    md5: str
    stage: str


def locked_outputs(lock: Path) -> Iterator[Output]:
    """What the stages of a dvc.lock wrote, with the files in folders. Raises UserError if it is damaged."""
    prefix = "" if lock.parent == Path() else f"{lock.with_suffix('.yaml')}:"
    for name, stage in (read_yaml(lock).get("stages") or {}).items():
        for out in stage.get("outs", ()):
            path, md5 = Path(out["path"]), str(out.get("md5", ""))
            yield Output(path, md5, prefix + name)
            if md5.endswith(".dir"):
                for entry in _listed(object_path(md5)):
                    yield Output(path / entry["relpath"], entry["md5"], prefix + name)


def objects() -> Iterator[tuple[Path, str]]:
    """Each object in the cache, with the md5 that its content had when it was written."""
    for path in sorted(_folder().glob("??/*")):
        if name := NAME.fullmatch(path.name):
            yield path, path.parent.name + name[1]


def object_path(md5: str) -> Path:
    """Where the content with this md5 is, if the cache has it."""
    return _folder() / md5[:2] / md5[2:]


def set_aside_damaged(md5: Callable[[Path], str], say: Callable[[str], None]) -> None:
    """Move what this project's stages wrote out of the cache if it has changed since, and say so.

    DVC trusts its cache, and would put a damaged result back instead of making it again. `md5` hashes a file.
    """
    outputs: dict[Path, Output] = {}
    for lock in LOCKS:
        with suppress(UserError):  # DVC reports it
            outputs |= {object_path(out.md5): out for out in (locked_outputs(lock) if lock.exists() else ())}
    for path, out in outputs.items():
        try:
            if path.stat().st_mode & 0o777 == COMPLETE and md5(path) != out.md5.removesuffix(".dir"):
                say(f"{out.path}: damaged in DVC's cache; set aside as {set_aside(path)}; DVC makes it again")
        except FileNotFoundError:  # not kept, or removed meanwhile
            continue
        except OSError as error:
            say(f"{out.path}: its copy in DVC's cache cannot be read ({error.strerror}): {path}")


def set_aside(path: Path) -> Path:
    """Move an object out of the cache, so that DVC never uses it. Returns where it is now."""
    aside = SET_ASIDE / f"{path.parent.name}{path.name}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(path, aside)
    except OSError:  # the cache is on another disk
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
    return aside


def _listed(path: Path) -> list[dict[str, str]]:
    """The files of a folder, from an object of the cache; none if it is missing or damaged."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [
            entry for entry in listed if isinstance(entry["relpath"], str) and isinstance(entry["md5"], str)
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _folder() -> Path:
    """Where the objects are: in .dvc/cache, unless DVC's configuration says otherwise."""
    config = configparser.RawConfigParser(strict=False)
    shared = (find("dvc", "iterative") / "config" for find in (site_config_path, user_config_path))
    for file in (*shared, Path(".dvc/config"), Path(".dvc/config.local")):
        with suppress(configparser.Error, UnicodeDecodeError):
            config.read(file, encoding="utf-8")
    folder = Path(config.get("cache", "dir", fallback="cache").strip("\"'")).expanduser()
    return Path(".dvc", folder, "files", "md5")
