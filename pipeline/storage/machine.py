"""How much memory and disk this machine has."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.config.errors import UserError


class Room(NamedTuple):
    """Bytes of memory or of a disk."""

    total: int
    free: int


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(root: Path = Path("/")) -> Room:
    """The memory of this machine, swap included, as far as this process may use it.

    `total` is at least what the process can get, so what exceeds it cannot fit. On Linux, the limits of the
    process's control groups (containers, batch systems) count. Elsewhere `free` is `total`.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Room(total, total)
    size = {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", lines, re.MULTILINE)}
    limit = min(_limits(root), default=size["MemTotal"])
    return Room(
        min(size["MemTotal"], limit) + size["SwapTotal"],
        min(size["MemAvailable"], limit) + size["SwapFree"],
    )


def disk(path: Path) -> Room:
    """The disk on which `path` is, or will be; links are followed."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return Room(usage.total, usage.free)


def check_disk(path: Path, needed: float, what: str) -> None:
    """Raise UserError if the disk of `path` lacks the bytes that are `needed` for `what`, a plural noun."""
    free = disk(path).free
    if needed > free:
        shown = path.with_suffix("") if path.suffix == ".part" else path
        raise UserError(
            f"{shown}: {what} need {binary(int(needed))} of disk, but {binary(free)} are free; free some, or "
            "put a link to a folder on a larger disk in its place"
        )


def binary(size: int) -> str:
    """A number of bytes for people: `1.4 GiB`."""
    amount, units = float(size), iter(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while amount >= 1000 and unit != "EiB":
        amount, unit = amount / 1024, next(units)
    return f"{size} bytes" if unit == "bytes" else f"{amount:.{1 if amount < 100 else 0}f} {unit}"


def decimal(count: float) -> str:
    """A number in three digits for people: `1.26M`."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{f'{count / unit:#.3g}'.rstrip('.')}{name}"
    return f"{count:.0f}"


def _limits(root: Path) -> Iterator[int]:
    """The memory limits of this process's control groups, of either version, and of the groups above."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            tree, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            tree, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = tree / path.lstrip("/")
        for above in (folder, *folder.parents):
            if above.is_relative_to(tree):
                try:
                    yield int((above / name).read_text(encoding="ascii"))
                except (OSError, ValueError):  # no such limit; "max" is none
                    continue
