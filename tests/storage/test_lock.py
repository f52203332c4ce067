"""One process at a time writes a folder, and a lock never outlives its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.storage.files import replacing_folder
from pipeline.storage.lock import locked, writing
from tests import tiny

HOLD = """
import sys, time
from pathlib import Path
from pipeline.storage.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_threads_in_turn_never_hold_it_together(tmp_path: Path) -> None:
    """The file is removed and made anew by each holder, which must not let two in."""
    path, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        for _ in range(50):
            with locked(path, lambda pid: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] and inside == [0] and not path.exists()


def test_a_process_that_is_killed_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    waited: list[str] = []

    def busy(pid: str) -> None:
        waited.append(pid)
        os.kill(holder.pid, signal.SIGKILL)

    with locked(path, busy):
        assert waited == [str(holder.pid)]
    holder.wait()
    holder.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_has_the_lock_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    entered = threading.Event()

    def second() -> None:
        with writing(tmp_path / "link"):
            entered.set()

    thread = threading.Thread(target=second)
    with writing(tmp_path / "real"):
        thread.start()
        assert not entered.wait(0.1)
    thread.join(10)
    assert entered.is_set()
    assert (
        capsys.readouterr().err == f"process {os.getpid()} is writing {tmp_path / 'link'}; waiting for it\n"
    )


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    refused = pytest.raises(UserError, match="file: cannot be written .*; use another folder")
    with refused, writing(tmp_path / "file" / "folder"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk/model").mkdir(parents=True)
    (tmp_path / "disk/model/old").write_text("old")
    (tmp_path / "model").symlink_to("disk/model")
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert [path.name for path in (tmp_path / "disk/model").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "model"]
