"""What an attempt finished is there for the next one with the same key, and for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.storage.resuming import KEY_FILE, resuming_folder

KEY = {"source": {"url": "a"}, "count": 2}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(folder: Path, name: str, key: dict[str, Any] = KEY) -> list[str]:
    """Write one file and fail; returns what was there before."""
    with pytest.raises(KeyboardInterrupt), resuming_folder(folder, key) as partial:
        before = names(partial)
        (partial / name).write_text(name)
        raise KeyboardInterrupt
    return before


def test_attempts_add_to_one_folder_which_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "folder"
    assert fail(folder, "one") == [KEY_FILE]
    assert fail(folder, "two") == [KEY_FILE, "one"]
    with resuming_folder(folder, KEY) as partial:
        assert names(partial) == [KEY_FILE, "one", "two"]
        assert not folder.exists()
    assert names(folder) == ["one", "two"]
    assert names(tmp_path / "a") == ["folder"]


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    fail(folder, "new")
    assert names(folder) == ["old"]
    with resuming_folder(folder, KEY):
        pass
    assert names(folder) == ["new"]


@pytest.mark.parametrize("damaged", [None, "", "[1]", '{"source"'])
def test_what_belongs_to_something_else_is_not_continued(tmp_path: Path, damaged: str | None) -> None:
    folder = tmp_path / "folder"
    fail(folder, "one")
    if damaged is not None:
        (tmp_path / "folder.part" / KEY_FILE).write_text(damaged)
    assert fail(folder, "two", KEY | {"count": 3} if damaged is None else KEY) == [KEY_FILE]


def test_a_symbolic_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "big").mkdir(parents=True)
    (tmp_path / "folder").symlink_to(disk / "big")
    fail(tmp_path / "folder", "one")
    with resuming_folder(tmp_path / "folder", KEY):
        pass
    assert names(disk / "big") == ["one"]
    assert (tmp_path / "folder").is_symlink()
    assert names(disk) == ["big"]


def test_a_folder_where_none_can_be_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "folder"
    with pytest.raises(UserError) as error, resuming_folder(folder, KEY):
        raise AssertionError
    assert str(error.value) == f"{folder}: cannot be written (Not a directory); name another folder"
