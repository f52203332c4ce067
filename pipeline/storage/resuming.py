"""Folders that take long to fill: what an interrupted attempt finished is kept for the next one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.reading import parse_json
from pipeline.storage.files import fsync, replacing_folder, write_json

KEY_FILE = "key.json"
PROGRESS_FILE = "progress.json"


@contextmanager
def resuming_folder(folder: Path, key: dict[str, Any]) -> Iterator[Path]:
    """Yield `<folder>.part` to fill; it replaces `folder` when the block ends without an error.

    After an error or a kill what is in `<folder>.part` stays, and an attempt with the same key finds it as it
    was left (after a power cut without what was not synced). `key` is JSON of all that the content depends
    on; with another one the folder is emptied first. The block may note in PROGRESS_FILE how far it came;
    that file does not get into `folder`.

    Raises UserError if the folder cannot be created.
    """
    real = folder.resolve()
    partial = real.with_name(real.name + ".part")
    if not _belongs_to(partial, key):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
        write_json(partial / KEY_FILE, key)
    try:
        yield partial
    except BaseException:
        if all(path.name == KEY_FILE for path in partial.glob("*")):
            shutil.rmtree(partial, ignore_errors=True)  # nothing to go on with
        raise
    for path in partial.rglob("*"):
        if path.is_file():
            fsync(path)  # slow, so do it while the next attempt would still find the folder
    with replacing_folder(real) as finished:
        os.rename(partial, finished)
        for name in (KEY_FILE, PROGRESS_FILE):
            (finished / name).unlink(missing_ok=True)


def _belongs_to(partial: Path, key: dict[str, Any]) -> bool:
    try:
        return bool(parse_json((partial / KEY_FILE).read_text(encoding="utf-8")) == key)
    except (OSError, ValueError):
        return False
