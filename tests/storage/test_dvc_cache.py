"""What a stage wrote and is damaged in DVC's cache is set aside, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from pipeline.storage.checksums import HashCache
from pipeline.storage.dvc_cache import SET_ASIDE, locked_outputs, object_path, objects, set_aside_damaged
from pipeline.storage.files import write_json


def into_cache(content: bytes, suffix: str = "") -> Path:
    path = object_path(hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)
    return path


def md5_of(path: Path) -> str:
    return path.parent.name + path.name


@pytest.mark.parametrize("config", ["", "[cache]\n    dir = ../elsewhere\n"])
def test_only_damaged_outputs_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(config)
    whole, damaged, unfinished, foreign = map(into_cache, (b"whole", b"damaged", b"unfinished", b"foreign"))
    names = {"a/whole": whole, "a/damaged": damaged}
    entries = [{"md5": md5_of(path), "relpath": name} for name, path in names.items()]
    listing = into_cache(json.dumps(entries).encode(), ".dir")
    outs = [{"path": path, "md5": md5_of(md5)} for path, md5 in (("results", listing), ("log", unfinished))]
    write_json(Path("dvc.lock"), {"stages": {"some": {"outs": [*outs, {"path": "not-cached"}]}}})
    assert {out.path for out in locked_outputs(Path("dvc.lock"))} == {
        *(Path(name) for name in ("results", "log", "not-cached", "results/a/whole", "results/a/damaged"))
    }
    assert ("elsewhere" in str(whole)) == bool(config)

    said = list[str]()
    with HashCache(tmp_path / "hashes.json") as hashes:
        set_aside_damaged(hashes.md5, said.append)
    assert said == []
    for path in (damaged, unfinished, foreign):
        path.chmod(0o644)
        path.write_bytes(b"changed")
        path.chmod(0o644 if path == unfinished else 0o444)  # DVC does not trust what may still be written to
    set_aside_damaged(hashes.md5, said.append)
    (line,) = said
    assert line.startswith("results/a/damaged: damaged in DVC's cache; set aside as ")
    assert {path for path, _ in objects()} == {whole, unfinished, foreign, listing}
    assert (SET_ASIDE / md5_of(damaged)).read_bytes() == b"changed"


def test_what_cannot_be_read_or_is_gone_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [into_cache(content) for content in (b"gone", b"bad sector")]
    outs = [{"path": path.name, "md5": md5_of(path)} for path in paths]
    write_json(Path("dvc.lock"), {"stages": {"some": {"outs": outs}}})
    os.unlink(paths[0])
    said = list[str]()

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    set_aside_damaged(fail, said.append)
    assert ["cannot be read (Input/output error)" in line for line in said] == [True]
    Path("dvc.lock").write_text("[")
    set_aside_damaged(fail, said.append)
