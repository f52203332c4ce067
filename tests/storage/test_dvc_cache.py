"""What is damaged in DVC's cache is removed, and nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.storage.checksums import HashCache
from pipeline.storage.dvc_cache import object_path, objects, remove_damaged


@pytest.mark.parametrize("config", ["", "[cache]\n    dir = ../elsewhere\n"])
def test_only_damaged_objects_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(config)
    paths = {}
    for content in (b"whole", b"damaged", b"[]"):
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        path = object_path(md5 + (".dir" if content == b"[]" else ""))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths[content] = path
    assert ("elsewhere" in str(path)) == bool(config)
    (path.parent / "other.tmp").write_bytes(b"of DVC's own")
    Path("results").mkdir()
    os.link(paths[b"damaged"], "results/model")
    assert {found for found, _ in objects()} == set(paths.values())

    hashes, said = HashCache(tmp_path / "hashes.json"), list[str]()
    remove_damaged(hashes.md5, said.append)
    assert said == []
    Path("results/model").write_bytes(b"domaged")
    remove_damaged(hashes.md5, said.append)
    assert [str(paths[b"damaged"]) in line and "it was results/model" in line for line in said] == [True]
    assert [path.exists() for path in paths.values()] == [True, False, True]
    assert Path("results/model").exists() and (path.parent / "other.tmp").exists()
