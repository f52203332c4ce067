"""Shards are plain ids, read as one sequence; a folder that was damaged says where."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.harness import call_apart
from pipeline.config.errors import UserError
from pipeline.storage import checksums
from pipeline.tokens import shards
from pipeline.tokens.shards import (
    MANIFEST_FILE,
    Manifest,
    ShardWriter,
    SplitManifest,
    SplitName,
    load_manifest,
    open_split,
    open_tokenizer,
    token_dtype,
)
from pipeline.tokens.tokenizers import CharTokenizer

IDS = np.random.default_rng(0).integers(0, 300, 11)


def write_folder(
    folder: Path, vocab_size: int = 300, shard_tokens: int = 4, ids: np.ndarray = IDS
) -> Manifest:
    """The same 11 tokens as both splits."""

    def write_split(split: SplitName) -> SplitManifest:
        writer = ShardWriter(folder, split, token_dtype(vocab_size), shard_tokens)
        for part in (ids[:1], ids[1:1], ids[1:8], ids[8:]):
            writer.append(part)
        return SplitManifest(tokens=len(ids), documents=1, utf8_bytes=99, shards=writer.close())

    manifest = Manifest(
        dtype="uint16" if token_dtype(vocab_size).itemsize == 2 else "uint32",
        vocab_size=vocab_size,
        tokenizer_sha256="0" * 64,
        source_sha256="1",
        train=write_split("train"),
        val=write_split("val"),
    )
    manifest.save(folder)
    return manifest


def test_ids_are_16_bits_while_they_fit() -> None:
    assert [token_dtype(size).str for size in (1, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "<u2"), (65_537, "<u4")])
def test_a_shard_is_read_by_memmap_as_it_is(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    writer = ShardWriter(tmp_path, "train", token_dtype(vocab_size), 10)
    writer.append(np.array([0, 258, vocab_size - 1], dtype=np.int64))
    (shard,) = writer.close()
    path = tmp_path / "train-00000.bin"
    assert np.memmap(path, dtype=dtype, mode="r").tolist() == [0, 258, vocab_size - 1]
    assert path.read_bytes()[:2] == b"\0\0"
    assert (shard.name, shard.tokens, shard.bytes) == (path.name, 3, path.stat().st_size)
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("shard_tokens", "sizes"), [(1, [1] * 11), (4, [4, 4, 3]), (10, [10, 1]), (11, [11]), (12, [11])]
)
def test_shards_are_full_but_for_the_last(tmp_path: Path, shard_tokens: int, sizes: list[int]) -> None:
    manifest = write_folder(tmp_path, shard_tokens=shard_tokens)
    assert [shard.tokens for shard in manifest.val.shards] == sizes
    names = {shard.name for split in (manifest.train, manifest.val) for shard in split.shards}
    assert {path.name for path in tmp_path.iterdir()} == names | {MANIFEST_FILE}


@pytest.mark.parametrize("shard_tokens", [1, 3, 4, 11])
@pytest.mark.parametrize("vocab_size", [300, 70_000])
def test_shards_are_read_as_one_sequence(tmp_path: Path, shard_tokens: int, vocab_size: int) -> None:
    write_folder(tmp_path, vocab_size, shard_tokens)
    tokens = open_split(tmp_path, "val")
    assert len(tokens) == len(IDS)
    for start in range(len(IDS) + 1):
        for stop in range(start, len(IDS) + 1):
            np.testing.assert_array_equal(tokens.read(start, stop), IDS[start:stop])


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert manifest.split("train") is manifest.train
    assert manifest.split("val") is manifest.val
    values = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert values["val"]["shards"][2] == manifest.val.shards[2].model_dump()


def test_the_fingerprint_covers_the_content_of_the_shards(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for folder in (one, same, other):
        folder.mkdir()
    manifest = write_folder(one)
    assert write_folder(same).fingerprint == load_manifest(one).fingerprint == manifest.fingerprint
    assert write_folder(other, ids=(IDS + 1) % 300).fingerprint != manifest.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "val-00001.bin: missing shard"),
        (b"\0" * 7, "val-00001.bin: truncated shard, 7 bytes instead of 8"),
        (b"", "val-00001.bin: truncated shard, 0 bytes instead of 8"),
        (b"\0" * 9, "val-00001.bin: overlong shard, 9 bytes instead of 8"),
        (b"\0" * 16, "overlong shard, 16 bytes instead of 8, as if of uint32 ids, not uint16; run"),
        (b"\0" * 8, "val-00001.bin: edited shard"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    write_folder(tmp_path)
    path = tmp_path / "val-00001.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_split(tmp_path, "val")
    assert str(tmp_path) in str(error.value)
    assert "dvc repro -f -s tokenize" in str(error.value)
    assert len(open_split(tmp_path, "train")) == len(IDS)


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize(("read_before", "problem"), [(True, "truncated"), (False, "changed")])
def test_a_shard_that_is_cut_while_it_is_in_use_is_named(
    tmp_path: Path, size: int, read_before: bool, problem: str
) -> None:
    write_folder(tmp_path)
    tokens = open_split(tmp_path, "val")
    if read_before:
        tokens.read(0, 11)
    os.truncate(tmp_path / "val-00001.bin", size)
    with pytest.raises(
        UserError, match=f"val-00001.bin: was {problem} while it was in use; run `dvc repro -f"
    ):
        tokens.read(2, 9)
    assert tokens.read(0, 4).tolist() == IDS[:4].tolist()
    assert tokens.read(8, 11).tolist() == IDS[8:].tolist()


def test_a_shard_that_is_replaced_while_it_is_in_use_is_never_mixed_with_the_old_ones(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tokens = open_split(tmp_path, "val")
    assert tokens.read(0, 8).tolist() == IDS[:8].tolist()
    for path in tmp_path.iterdir():
        path.rename(tmp_path / f"old-{path.name}")
    with pytest.raises(UserError, match="val-00002.bin: was removed while it was in use; run `dvc"):
        tokens.read(0, 11)
    write_folder(tmp_path, ids=(IDS + 1) % 300)
    assert tokens.read(0, 8).tolist() == IDS[:8].tolist()
    with pytest.raises(UserError, match="val-00002.bin: was changed while it was in use; run `dvc"):
        tokens.read(0, 11)


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_shards_are_opened_when_they_are_read_and_closed_with_the_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    before = open_files()
    tokens = open_split(tmp_path, "val")
    assert open_files() == before
    for stop, opened in ((4, 1), (5, 2), (8, 2), (11, 3)):
        tokens.read(0, stop)
        assert open_files() == before + opened
    del tokens
    assert open_files() == before


def test_a_limited_number_of_shards_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_OPEN", 5)
    ids = np.arange(300)
    write_folder(tmp_path, shard_tokens=10, ids=ids)
    before = open_files()
    tokens = open_split(tmp_path, "val")
    for start in np.random.default_rng(0).permutation(270):
        assert tokens.read(start, start + 30).tolist() == ids[start : start + 30].tolist()
        assert open_files() <= before + 5


@pytest.mark.parametrize("hard", [80, None])
def test_more_shards_than_a_process_may_open(tmp_path: Path, hard: int | None) -> None:
    write_folder(tmp_path, shard_tokens=1, ids=np.arange(300))
    assert call_apart(_read_with_few_open_files, tmp_path, hard) == list(range(300))


def _read_with_few_open_files(folder: Path, hard: int | None) -> list[int]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    ids: list[int] = open_split(folder, "val").read(0, 300).tolist()
    return ids


def test_opening_many_shards_opens_only_the_manifest(tmp_path: Path) -> None:
    write_folder(tmp_path, shard_tokens=1, ids=np.arange(300))
    assert call_apart(_opened_or_listed, tmp_path) == [str(tmp_path / MANIFEST_FILE)]


def _opened_or_listed(folder: Path) -> list[str]:
    """The paths below the folder that are opened or listed while a split is opened and not verified."""
    paths: list[str] = []

    def note(event: str, about: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and str(about[0]).startswith(str(folder)):
            paths.append(str(about[0]))

    sys.addaudithook(note)
    open_split(folder, "val", verify=False)
    return paths


def test_a_shard_without_an_entry_does_not_exist(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val-00003.bin").write_bytes(b"\0\0")
    assert len(open_split(tmp_path, "val")) == len(IDS)


def test_a_missing_or_damaged_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="manifest.json: no such file; run `dvc repro tokenize`"):
        load_manifest(tmp_path)
    write_folder(tmp_path)
    path = tmp_path / MANIFEST_FILE
    whole = path.read_bytes()
    for content in (b"", whole[:-9], b"\xff" + whole, b"[]", whole.replace(b'"vocab_size"', b'"size"')):
        path.write_bytes(content)
        with pytest.raises(UserError, match="manifest.json: (damaged|not UTF-8).*repro -f") as error:
            open_split(tmp_path, "train")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"dtype": "uint16"', '"dtype": "uint32"'),
        ('"vocab_size": 300', '"vocab_size": 0'),
        ('"vocab_size": 300', '"vocab_size": 70000'),
        ('"tokens": 11', '"tokens": 12'),
        ('"tokens": 11', '"tokens": -11'),
        ('"bytes": 8', '"bytes": 9'),
        ('"utf8_bytes": 99', '"utf8_bytes": -99'),
        ('"name": "train-00000.bin"', '"name": "../train-00000.bin"'),
        ('"tokenizer_sha256": "0', '"tokenizer_sha256": "g'),
    ],
)
def test_a_manifest_that_contradicts_itself_is_damaged(tmp_path: Path, old: str, new: str) -> None:
    write_folder(tmp_path)
    path = tmp_path / MANIFEST_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match="manifest.json: damaged; run `dvc repro -f -s tokenize`"):
        load_manifest(tmp_path)


def test_a_split_without_shards_is_damaged(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = tmp_path / MANIFEST_FILE
    values = json.loads(path.read_text())
    values["val"] |= {"shards": [], "tokens": 0}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="manifest.json: damaged"):
        open_split(tmp_path, "val")


def test_only_the_tokenizer_that_made_the_shards_is_opened(tmp_path: Path, tiny_tokens: Path) -> None:
    shutil.copytree(tiny_tokens, tmp_path / "char")
    tokenizer = open_tokenizer(tmp_path / "char")
    characters = "".join(tokenizer.characters)  # type: ignore[attr-defined]
    swapped = characters.translate(str.maketrans("ab", "ba"))
    CharTokenizer(swapped, end_of_text=True).save(tmp_path / "char")
    with pytest.raises(UserError, match=r"tokenizer.json: not the tokenizer that made the shards; run `dvc"):
        open_tokenizer(tmp_path / "char")


def test_large_shards_are_hashed_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path)
    monkeypatch.setattr(shards, "LARGE", 8)  # bytes; the last shard has 6
    read: list[str] = []

    hash_file = checksums.hash_file

    def counted(path: Path, algorithm: str) -> str:
        read.append(path.name)
        return hash_file(path, algorithm)

    monkeypatch.setattr(checksums, "hash_file", counted)
    open_split(tmp_path, "val")
    assert read == [f"val-0000{number}.bin" for number in range(3)]
    open_split(tmp_path, "val")
    assert read[3:] == ["val-00002.bin"]
    edited = bytes(8)
    (tmp_path / "val-00001.bin").write_bytes(edited)
    for _ in range(2):
        with pytest.raises(UserError, match="val-00001.bin: edited shard"):
            open_split(tmp_path, "val")
