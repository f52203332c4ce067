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
