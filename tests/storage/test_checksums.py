"""A file that did not change is hashed once; one that did is hashed again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.storage import checksums
from pipeline.storage.checksums import HashCache, sha256_file


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "weights", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    hashes = HashCache(cache)
    first = hashes.sha256(path)
    assert first == sha256_file(path)
    hashes.save()

    monkeypatch.setattr(checksums, "hash_file", lambda path, algorithm: "read again")
    assert HashCache(cache).sha256(path) == first
    os.utime(path, ns=(0, 0))
    assert HashCache(cache).sha256(path) == "read again"
    path.write_bytes(b"another size")
    assert HashCache(cache).sha256(path) == "read again"
    for damaged in ("{ damaged", "[]", "[" * 9999, json.dumps({f"sha256:{path}": 7})):
        cache.write_text(damaged)
        assert HashCache(cache).sha256(path) == "read again"


def test_another_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """`cp -p` and `touch -r` keep both."""
    path, hashes = tmp_path / "weights", HashCache(tmp_path / "hashes.json")
    path.write_bytes(b"one")
    first, times = hashes.sha256(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"two")
    os.utime(path, ns=times)
    assert hashes.sha256(path) != first


def test_hashes_are_kept_only_where_that_is_possible(tmp_path: Path) -> None:
    path, gone, cache = tmp_path / "weights", tmp_path / "gone", tmp_path / "hashes.json"
    for file in (path, gone):
        file.write_bytes(b"one")
    hashes = HashCache(cache)
    hashes.save()
    assert not cache.exists(), "nothing was learned"
    for file in (path, gone):
        hashes.sha256(file)
    gone.unlink()
    hashes.save()
    assert list(json.loads(cache.read_text())) == [f"sha256:{path}"]
    nowhere = HashCache(path / "hashes.json")
    assert nowhere.sha256(path) == sha256_file(path)
    nowhere.save()
    assert path.read_bytes() == b"one"
