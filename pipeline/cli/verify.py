"""Hash every file again, and compare with what was recorded when it was written."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.cli.recorded import KINDS, Damage, Recorded
from pipeline.config.errors import UserError
from pipeline.config.paths import DATA, RESULTS, runs_folder
from pipeline.storage.dvc_cache import set_aside

CHUNK = 1 << 20
NAMES_SHOWN = 6


def main() -> None:
    """Hash every file of data/, runs/, results/ and DVC's cache, and say what is damaged and what to do.

    Bad objects in DVC's cache are set aside. Everything else stays as it is.
    """
    found = {kind: list(find()) for kind, find in KINDS.items()}
    files = {path for entries in found.values() for path in _read(entries)}
    hashes = Hashes([entry for entries in found.values() for entry in entries if isinstance(entry, Recorded)])
    damaged: list[Damage] = []
    judged: set[Path] = set()  # what is recorded beside a file comes first; dvc.lock may be older
    for kind, entries in found.items():
        news = [entry for entry in entries if entry.path not in judged]
        bad = [damage for entry in news if (damage := _check(entry, hashes))]
        _print(kind, _read(entries), f"{len(bad):,} DAMAGED" if bad else "whole" if entries else "")
        damaged += bad
        judged |= {entry.path for entry in news}
    rest = _without_record({path.absolute() for path in files})
    _print("no hash recorded", rest, _names(rest))
    for number, damage in enumerate(damaged):
        print(f"{'' if number else chr(10)}{damage}")
        if damage.remove:
            _set_aside(damage.path)
    if damaged:
        raise UserError(f"{len(damaged):,} damaged, of {len(files):,} files; see what to do beside each")


def _check(entry: Recorded | Damage, hashes: Hashes) -> Damage | None:
    """What is wrong with an entry, now that the files are hashed."""
    if isinstance(entry, Damage):
        return entry
    try:
        of = partial(hashes.of, algorithm=entry.algorithm)
        actual = entry.actual(of) if entry.actual else of(entry.path)
    except FileNotFoundError as error:
        if not entry.path.parent.exists():  # a training that goes on has removed an old checkpoint
            return None
        return Damage(Path(error.filename), "missing", entry.remedy)
    except OSError as error:
        return Damage(Path(error.filename), f"cannot be read ({error.strerror})", entry.remedy)
    return None if actual == entry.hash else Damage(entry.path, entry.problem, entry.remedy, entry.remove)


class Hashes:
    """The hashes of many files, each read once, even if it has several names or is recorded several times."""

    def __init__(self, entries: Collection[Recorded]) -> None:
        """Read the files, on several threads, with progress if stderr is a terminal."""
        self._found: dict[tuple[int, int], dict[str, str] | OSError] = {}
        self._lock = threading.Lock()
        algorithms: dict[tuple[int, int], set[str]] = defaultdict(set)
        paths: dict[tuple[int, int], Path] = {}
        for entry in entries:
            for path in entry.read:
                if identity := _identity(path):
                    algorithms[identity].add(entry.algorithm)
                    paths[identity] = path
        total = _size(paths.values())
        with (
            tqdm(
                total=total, unit="B", unit_scale=True, desc="verify", disable=not sys.stderr.isatty()
            ) as bar,
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads,
        ):
            self._bar = bar
            results = threads.map(lambda one: self._hash(paths[one], algorithms[one]), paths)
            self._found = dict(zip(paths, results, strict=True))

    def of(self, path: Path, algorithm: str) -> str:
        """The hash of a file, in hexadecimal. Raises OSError if it is missing or could not be read."""
        found = self._found.get(_identity(path) or (0, 0))
        if found is None:
            raise FileNotFoundError(2, "No such file", str(path))
        if isinstance(found, OSError):
            raise found
        return found[algorithm]

    def _hash(self, path: Path, algorithms: Iterable[str]) -> dict[str, str] | OSError:
        hashers = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        buffer = bytearray(CHUNK)
        try:
            with path.open("rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    for hasher in hashers.values():
                        hasher.update(memoryview(buffer)[:size])
                    with self._lock:
                        self._bar.update(size)
        except OSError as error:
            return OSError(error.errno, error.strerror, str(path))
        return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def _set_aside(path: Path) -> None:
    """Take a bad object out of DVC's cache."""
    try:
        set_aside(path)
    except OSError as error:
        print(f"  it could not be moved ({error.strerror}); remove it before DVC runs")


def _without_record(files: Collection[Path]) -> list[Path]:
    """The files in data/, runs/ and results/ for which no hash is recorded."""
    return [path for path in _files(DATA, runs_folder(), RESULTS) if path.absolute() not in files]


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for parent, _, names in os.walk(folder, followlinks=True):
            yield from (Path(parent, name) for name in names)


def _read(entries: Iterable[Recorded | Damage]) -> set[Path]:
    """The files that entries are about."""
    return {path for entry in entries if isinstance(entry, Recorded) for path in entry.read}


def _print(kind: str, files: Collection[Path], verdict: str) -> None:
    print(f"{kind:<20} {len(files):>7,} files {_size(files) / 1e6:>12,.1f} MB   {verdict}".rstrip())


def _names(paths: Iterable[Path]) -> str:
    names = sorted({path.name for path in paths})
    more = f", ... {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _size(paths: Iterable[Path]) -> int:
    """The bytes of all files that are there."""
    return sum(path.stat().st_size for path in paths if path.exists())


def _identity(path: Path) -> tuple[int, int] | None:
    """What all hard links to a file share; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
