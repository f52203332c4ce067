"""The memory that a process may use, under each kind of limit; the disk of a folder that is not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.storage.files import write_text
from pipeline.storage.machine import binary, decimal, disk, memory

MEMINFO = """MemTotal:        8000 kB
MemFree:         1000 kB
MemAvailable:    6000 kB
SwapTotal:        500 kB
SwapFree:         400 kB
"""


def machine(root: Path, cgroup: str, limits: dict[str, str]) -> tuple[int, int]:
    write_text(root / "proc/meminfo", MEMINFO)
    write_text(root / "proc/self/cgroup", cgroup)
    for path, limit in limits.items():
        write_text(root / "sys/fs/cgroup" / path, f"{limit}\n")
    total, free = memory(root)
    return total >> 10, free >> 10


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/\n", {}, (8500, 6400)),
        ("0::/jobs/7\n", {"jobs/7/memory.max": "max", "jobs/memory.max": "max"}, (8500, 6400)),
        ("0::/jobs/7\n", {"jobs/7/memory.max": "max", "jobs/memory.max": str(7000 << 10)}, (7500, 6400)),
        ("0::/\n", {"memory.max": str(2000 << 10)}, (2500, 2400)),
        ("0::/\n", {"memory.max": str(9000 << 10)}, (8500, 6400)),
        (
            "4:cpu,memory:/box\n3:cpuset:/\n0::/\n",
            {
                "memory/memory.limit_in_bytes": str(3000 << 10),
                "memory/box/memory.limit_in_bytes": str(1 << 62),
            },
            (3500, 3400),
        ),
    ],
    ids=["none", "unlimited", "of-a-group-above", "tight", "wide", "version-1"],
)
def test_memory_is_what_the_control_groups_leave(
    tmp_path: Path, cgroup: str, limits: dict[str, str], expected: tuple[int, int]
) -> None:
    assert machine(tmp_path, cgroup, limits) == expected


def test_memory_without_proc_is_what_the_system_says(tmp_path: Path) -> None:
    total, free = memory(tmp_path)
    assert total == free > 1 << 27


def test_this_machine_has_memory() -> None:
    total, free = memory()
    assert total >= free > 1 << 27


def test_the_disk_of_a_folder_that_is_a_link_or_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/runs")
    assert disk(tmp_path / "link/deeper").total == shutil.disk_usage(tmp_path).total


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KiB"),
        (1_493_277_696, "1.4 GiB"),
        (1000 << 20, "1.0 GiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert binary(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (12_345, "12.3k"), (999_700, "1.00M"), (124_439_808, "124M")],
)
def test_a_number_in_three_digits(count: int, text: str) -> None:
    assert decimal(count) == text
