"""Folders that take long to fill: what an interrupted attempt finished is kept for the next one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.storage.files import fsync, replacing_folder, write_json

KEY_FILE = "key.json"


@contextmanager
def resuming_folder(folder: Path, key: dict[str, Any]) -> Iterator[Path]:
    """Yield `<folder>.part` to fill; it replaces `folder` when the block ends without an error.

    After an error or a kill `<folder>.part` stays, and an attempt with the same key finds it as it was left
    (after a power cut without what was not synced). `key` is JSON of all that the content depends on; with
    another one the folder is emptied first.

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
    yield partial
    for path in partial.rglob("*"):
        if path.is_file():
            fsync(path)  # slow, so do it while the next attempt would still find the folder
    with replacing_folder(real) as finished:
        os.rename(partial, finished)
        (finished / KEY_FILE).unlink()


def _belongs_to(partial: Path, key: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((partial / KEY_FILE).read_text(encoding="utf-8")) == key)
    except (OSError, ValueError):
        return False
