"""Every recorded file is hashed again: a flipped bit is named with its remedy, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.recorded import KINDS, Damage
from pipeline.config.paths import RECORD
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.storage.checksums import (
    read_checked_json,
    save_folder,
    sha256_file,
    write_checked_json,
    write_record,
)
from pipeline.storage.files import write_json, write_text
from tests import tiny
from tests.conftest import Ended
from tests.train.runs import flip_a_bit

OBJECTS = Path(".dvc/cache/files/md5")
LOCKED = ("data/tiny/raw", "data/tiny/char", "results/model", "results/log.csv", "results/metrics.json")


def into_cache(content: bytes, suffix: str = "") -> tuple[Path, str]:
    md5 = hashlib.md5(content).hexdigest() + suffix
    path = OBJECTS / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path, md5


def lock(out: Path) -> dict[str, str]:
    """Put an output into DVC's cache, link it back, and return its entry for dvc.lock."""
    entries = []
    for path in sorted(out.rglob("*")) if out.is_dir() else [out]:
        cached, md5 = into_cache(path.read_bytes())
        path.unlink()
        path.hardlink_to(cached)
        entries.append({"md5": md5, "relpath": str(path.relative_to(out))})
    if out.is_dir():
        _, md5 = into_cache(json.dumps(entries).encode(), ".dir")
    return {"path": str(out), "md5": md5}


@pytest.fixture
def project(tiny_project: Path, stage: Callable[..., Ended], without_fsync: None) -> Path:
    """The current folder is a project with everything that `make verify` looks at."""
    write_text(Path("tiny.txt"), tiny.text())
    write_spec(spec_for_text("tiny.txt"), Path("data/tiny/dataset.yaml"))
    for command in ("download", "tokenize", "train -S train.max_iters=2", "eval_baselines xz"):
        ended = stage(*command.split())
        assert ended.status == 0, ended.err
    save_folder(Path("results/export"), lambda folder: write_text(folder / "model.safetensors", "weights"))
    write_text(Path("results/scaling.csv"), "params\n")
    files = {"results/scaling.csv": sha256_file(Path("results/scaling.csv"))}
    write_checked_json(Path("results/scaling.json"), {"files": files})
    outs = [lock(Path(out)) for out in LOCKED]
    write_json(Path("dvc.lock"), {"schema": "2.0", "stages": {"some@a b": {"outs": outs}}})
    return tiny_project


def recorded_files() -> list[Path]:
    entries = [entry for find in KINDS.values() for entry in find()]
    assert not [entry for entry in entries if isinstance(entry, Damage)]
    return sorted({path for entry in entries if not isinstance(entry, Damage) for path in entry.read})


def inodes(paths: list[Path]) -> set[int]:
    return {path.stat().st_ino for path in paths}


def test_what_was_just_written_is_whole(project: Path, stage: Callable[..., Ended]) -> None:
    ended = stage("verify")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert [line[:20].rstrip() for line in lines] == [*KINDS, "no hash recorded"]
    assert all(line.endswith("whole") and " 0 files" not in line for line in lines[:-1]), ended.out
    unknown = {
        path.name for path in Path("data").rglob("*") if path.stat().st_ino not in inodes(recorded_files())
    }
    assert unknown - {"tiny", "raw", "char"} == {"dataset.yaml"}
    assert "dataset.yaml, " in lines[-1] and "log.csv" not in lines[-1]


def test_a_flipped_bit_in_any_file_is_found_and_nothing_but_the_cache_is_changed(
    project: Path, stage: Callable[..., Ended]
) -> None:
    files = recorded_files()
    for path in files:
        content = {file: file.read_bytes() for file in files}
        links = [file for file in files if file.samefile(path)]
        os.chmod(path, 0o644)
        flip_a_bit(path)
        ended = stage("verify")
        assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, path
        assert f"{path}: " in ended.out or f"{path.parent}: not the text" in ended.out, (path, ended.out)
        assert all(file.read_bytes() == content[file] for file in files if file not in links)
        for file in links:
            file.unlink(missing_ok=True)
            file.write_bytes(content[file])
    assert stage("verify").status == 0


def test_a_bad_object_is_set_aside_and_the_result_that_it_was_is_named(
    project: Path, stage: Callable[..., Ended]
) -> None:
    weights = Path("results/model/model.safetensors")
    flip_a_bit(weights)
    ended = stage("verify")
    bad = [
        path for path in OBJECTS.rglob("*") if path.is_file() and path.stat().st_ino == weights.stat().st_ino
    ]
    assert bad == []
    assert f"not what was written; it was {weights}; set aside in .dvc/tmp/damaged" in ended.out
    assert f"{weights}: not what was written; `dvc repro -f -s train` publishes it again" in ended.out
    assert ended.out.count(f"{weights}: ") == 1, "judged once, by the record beside it"
    assert stage("verify").out.count("DAMAGED") == 1


def test_missing_and_unreadable_files_are_named(project: Path, stage: Callable[..., Ended]) -> None:
    Path("data/tiny/char/val-00000.bin").unlink()
    (run,) = Path("runs").iterdir()
    write_text(run / "best/manifest.json", "{}")
    write_text(run / "finished/metrics.json", "{")
    write_text(Path("results/export/manifest.json"), json.dumps({"model.safetensors": 3, "config.json": "0"}))
    ended = stage("verify")
    assert ended.status == 2
    for expected in (
        "data/tiny/char/val-00000.bin: missing; `dvc repro -f -s tokenize` with data.dataset = tiny and ",
        f"{run}/best/manifest.json: missing or damaged; restore it from a copy, or move {run} away",
        f"{run}/finished/metrics.json: not what was written; the next training makes it again",
        "results/export/model.safetensors: not what was written; ",
        "results/export/config.json: missing; ",
    ):
        assert expected in ended.out, ended.out


def test_a_stage_that_was_run_by_hand_is_not_called_damage_alone(
    project: Path, stage: Callable[..., Ended]
) -> None:
    metrics, facts = Path("results/metrics.json"), read_checked_json(RECORD, remedy="")
    write_text(metrics, "{}")
    ended = stage("verify")
    assert "results/metrics.json: not what was written; " in ended.out
    write_record(RECORD, facts, [metrics])
    ended = stage("verify")
    assert (ended.status, ended.err) == (0, ""), "the run that wrote it knows it; dvc.lock is older"
    RECORD.unlink()
    ended = stage("verify")
    assert "not what dvc.lock records, by damage or because a stage was run by hand; `dvc repro" in ended.out
    assert "-s 'some@a b'`" in ended.out


def test_an_empty_folder_is_whole(
    tmp_path: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stage("verify").status == 0
    assert list(tmp_path.iterdir()) == []
