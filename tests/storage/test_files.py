"""A crash leaves the old content or the new, and DVC's cache is never written to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import link, replacing_folder, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cached(path: Path, cache: Path) -> None:
    """Make `path` what DVC makes of an output: a read-only hard link into its cache."""
    os.link(path, cache)
    cache.chmod(0o444)


def test_text_is_written_exactly_into_folders_that_need_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "é\r\n\n😀")
    assert path.read_bytes() == "é\r\n\n😀".encode()
    write_text(path, "short")
    assert path.read_bytes() == b"short"
    assert names(path.parent) == ["text.txt"]


def test_what_is_not_a_file_stays_in_its_place(tmp_path: Path) -> None:
    """Root could replace /dev/null by a file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(UserError, match=f"{name}: not a regular file; name another"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "fifo").is_fifo() and names(tmp_path) == ["fifo", "folder"]


def test_json_is_indented_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "é", "loss": 1.5})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "é", "loss": 1.5}
    assert text.splitlines()[1] == '  "name": "é",'


def test_text_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["text.txt"]


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_text_does_not_reach_the_cache(tmp_path: Path, link: str) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache.txt"
    write_text(path, "old")
    cached(path, cache)
    if link == "symbolic":
        path.unlink()
        path.symlink_to(cache)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert cache.read_text() == "old"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "folder"
    with replacing_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "new.txt").write_text("new")
        assert not folder.exists()
    assert (folder / "inner" / "new.txt").read_text() == "new"
    assert names(folder.parent) == ["folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder, cache = tmp_path / "folder", tmp_path / "cache.txt"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    (folder / "b.txt").write_text("old")
    cached(folder / "a.txt", cache)
    with replacing_folder(folder) as temporary:
        assert names(temporary) == []
        (temporary / "a.txt").write_text("new")
        assert (folder / "a.txt").read_text() == "old"
    assert names(folder) == ["a.txt"]
    assert (folder / "a.txt").read_text() == "new"
    assert cache.read_text() == "old"
    assert names(tmp_path) == ["cache.txt", "folder"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    with pytest.raises(type(error)), replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text("new")
        raise error
    assert names(tmp_path) == ["folder"]
    assert (folder / "a.txt").read_text() == "old"


def test_what_a_killed_process_left_is_not_in_the_next_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(AssertionError), replacing_folder(folder) as temporary:
        abandoned = temporary
        raise AssertionError
    abandoned.mkdir()
    (abandoned / "half.bin").write_text("half")
    with replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text("new")
    assert names(folder) == ["a.txt"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_where_none_can_be_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "folder"
    with pytest.raises(UserError) as error, replacing_folder(folder):
        raise AssertionError
    assert str(error.value) == f"{folder}: cannot be written (Not a directory); name another folder"


def test_sha256_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 400
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256_file(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


def test_a_link_replaces_a_link_or_a_file_and_nothing_else(tmp_path: Path) -> None:
    first, second, place = tmp_path / "first", tmp_path / "second", tmp_path / "results/live.csv"
    first.write_text("1")
    link(place, first)
    link(place, second)
    second.write_text("2")
    assert place.read_text() == "2" and first.read_text() == "1"
    place.unlink()
    place.write_text("a file")
    link(place, first)
    assert place.read_text() == "1" and names(place.parent) == ["live.csv"]
    place.unlink()
    place.mkdir()
    link(place, first)
    assert place.is_dir() and names(place.parent) == ["live.csv"]
    link(first / "under-a-file", second)
    assert first.read_text() == "1"
