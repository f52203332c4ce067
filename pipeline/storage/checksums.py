"""Checksums of files, folders with a manifest of their files' checksums, and JSON files with their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.reading import OTHER_FILE, check_file, parse_json, read_json
from pipeline.storage.files import LEFTOVER, replacing_folder, write_json

MANIFEST_FILE = "manifest.json"
CHECKSUM = "checksum"  # in a JSON file: of its other values
REMEDY = "run `dvc repro -f -s train` to publish them again"


def hash_file(path: Path, algorithm: str) -> str:
    """The hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.new, algorithm, usedforsecurity=False)).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    return hash_file(path, "sha256")


class HashCache:
    """Remembers the hash of each file until its size, times or inode change: large files are read once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # start empty: the cache only saves time
            known = {}
        whole = isinstance(known, dict) and all(isinstance(about, list) for about in known.values())
        self._known: dict[str, list[object]] = known if whole else {}
        self._changed = False

    def sha256(self, path: Path) -> str:
        """The sha256 of a file, which is read again only if something about it has changed."""
        return self._hash(path, "sha256")

    def md5(self, path: Path) -> str:
        """The md5 of a file, by which DVC knows it."""
        return self._hash(path, "md5")

    def _hash(self, path: Path, algorithm: str) -> str:
        """The hash of a file.

        The inode and the time of the last change of status tell apart a file that was put in place with the
        size and the modification time of another, as `cp -p` and `touch -r` do.
        """
        key, status = f"{algorithm}:{path.absolute()}", path.stat()
        about = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(key)
        if not isinstance(known, list) or known[:-1] != about:
            self._known[key] = known = [*about, hash_file(path, algorithm)]
            self._changed = True
        return str(known[-1])

    def __enter__(self) -> HashCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def save(self) -> None:
        """Write what was learned, of files that still exist, unless the folder cannot be written to."""
        if self._changed:
            with suppress(OSError, UserError):
                write_json(self._file, {key: known for key, known in self._known.items() if _exists(key)})


def _exists(key: str) -> bool:
    algorithm, _, path = key.partition(":")
    return algorithm in ("sha256", "md5") and Path(path).exists()


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace `folder` by the files that `write` puts into it and a manifest of their checksums."""
    with replacing_folder(folder) as temporary:
        write(temporary)
        write_manifest(temporary)


def write_manifest(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Record the checksums of the files in `folder`, which has no other folders in it."""
    no_content = {MANIFEST_FILE, *leave_out}
    paths = [path for path in sorted(folder.iterdir()) if path.name not in no_content]
    paths = [path for path in paths if not LEFTOVER.fullmatch(path.name)]  # of a process that was killed
    write_json(folder / MANIFEST_FILE, {path.name: sha256_file(path) for path in paths})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The sha256 of each file in a folder, as `write_manifest` recorded it.

    Raises OSError if there is no manifest, and ValueError, saying why, if it is damaged.
    """
    try:
        checksums = parse_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(checksums, dict) or not checksums:
        raise ValueError("lists no files")
    return checksums


def damage(folder: Path, *names: str, sha256: Callable[[Path], str] = sha256_file) -> str | None:
    """What is wrong with a folder that has a manifest, as `<file>: <problem>`; None if nothing is.

    With `names`, only these files are looked at. `sha256` computes a file's checksum, or remembers it.
    """
    try:
        checksums = read_manifest(folder)
        for name in names or checksums:
            if sha256(folder / name) != checksums.get(name):
                return f"{name}: not what was saved"
    except ValueError as error:
        return f"{MANIFEST_FILE}: {error}"
    except OSError as error:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return None


def write_checked_json(path: Path, values: dict[str, Any]) -> None:
    """Replace the content of `path` by `values` as JSON, with their checksum among them."""
    write_json(path, {**values, CHECKSUM: checksum(values)})


def read_checked_json(path: Path, remedy: str, missing: str = OTHER_FILE) -> dict[str, Any]:
    """What `write_checked_json` wrote. Raises UserError if the file is missing or any value has changed."""
    values = read_json(path, missing, remedy)
    if CHECKSUM not in values:
        raise UserError(f"{path}: without a checksum, so an earlier version wrote it; {remedy}")
    if values.pop(CHECKSUM) != checksum(values):
        raise UserError(f"{path}: not what was written; {remedy}")
    return values


def checksum(values: dict[str, Any]) -> str:
    """The sha256 of values that JSON can hold, whatever their order and layout in a file."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, facts: dict[str, Any], files: Iterable[Path]) -> None:
    """Write a JSON file of facts and of the checksums of `files`, which belong together."""
    write_checked_json(path, {**facts, "files": {str(file): sha256_file(file) for file in files}})


def check_recorded(path: Path) -> dict[str, Any]:
    """The facts in a record. Raises UserError unless its files are there, and what they were."""
    record = read_checked_json(path, REMEDY, missing=f"the results are not whole: {REMEDY}")
    for name, sha256 in record["files"].items():
        check_file(Path(name), missing=f"the results are not whole: {REMEDY}")
        if sha256_file(Path(name)) != sha256:
            raise UserError(f"{name}: not of the run that {path} records; {REMEDY}")
    return record
