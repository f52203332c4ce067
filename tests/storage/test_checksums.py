"""A file that did not change is hashed once; one that did is hashed again."""

from __future__ import annotations

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

    monkeypatch.setattr(checksums, "sha256_file", lambda path: "read again")
    assert HashCache(cache).sha256(path) == first
    os.utime(path, ns=(0, 0))
    assert HashCache(cache).sha256(path) == "read again"
    path.write_bytes(b"another size")
    assert HashCache(cache).sha256(path) == "read again"
    cache.write_text("{ damaged")
    assert HashCache(cache).sha256(path) == "read again"


def test_another_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """`cp -p` and `touch -r` keep both."""
    path, hashes = tmp_path / "weights", HashCache(tmp_path / "hashes.json")
    path.write_bytes(b"one")
    first, times = hashes.sha256(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"two")
    os.utime(path, ns=times)
    assert hashes.sha256(path) != first
