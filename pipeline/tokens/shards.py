"""Shards, which are files of little-endian token ids without a header, and the manifest that lists them.

Ids are uint16 for a vocabulary of up to 65,536, else uint32. `numpy.memmap` can read a shard as it is, and so
can nanoGPT if it is uint16.
"""

from __future__ import annotations

import hashlib
import os
import resource
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from pipeline.config.errors import UserError
from pipeline.config.paths import hashes_file
from pipeline.config.reading import check_file, read_text
from pipeline.config.validation import Section, Sha256
from pipeline.storage.checksums import HashCache, sha256_file
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer, load_tokenizer

MANIFEST_FILE = "manifest.json"
LARGE = 1 << 20  # bytes from which on a shard's hash is remembered
MOST_OPEN = 1024  # shards of a split that are kept open
NARROW, WIDE = np.dtype("<u2"), np.dtype("<u4")
REMEDY = "run `dvc repro -f -s tokenize` to write it again"

SplitName = Literal["train", "val"]


class Shard(Section):
    name: Annotated[str, Field(pattern=r"^(train|val)-\d{5,}\.bin$")]
    tokens: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Sha256


class SplitManifest(Section):
    tokens: NonNegativeInt
    documents: NonNegativeInt = Field(description="documents that end in this split")
    utf8_bytes: NonNegativeInt = Field(description="bytes of the text, for bits per byte")
    shards: Annotated[list[Shard], Field(min_length=1)]

    @model_validator(mode="after")
    def _tokens_add_up(self) -> SplitManifest:
        if self.tokens != sum(shard.tokens for shard in self.shards):
            raise ValueError("tokens is not the sum of its shards")
        return self


class MergesSample(Section):
    """Which part of the training split the merges of a BPE were learned on: pieces drawn with `seed`."""

    characters: NonNegativeInt
    seed: NonNegativeInt


class Manifest(Section):
    """What a folder of shards holds. A shard that is not listed here is ignored."""

    dtype: Literal["uint16", "uint32"]
    vocab_size: PositiveInt
    tokenizer_sha256: Sha256
    source_sha256: str = Field(description="fingerprint of the raw text")
    merges_sample: MergesSample | None = None
    train: SplitManifest
    val: SplitManifest

    @model_validator(mode="after")
    def _sizes_agree(self) -> Manifest:
        width = token_dtype(self.vocab_size)
        if np.dtype(self.dtype) != width:
            raise ValueError(f"dtype is not {width.name}, that of {self.vocab_size} ids")
        for shard in (*self.train.shards, *self.val.shards):
            if shard.bytes != shard.tokens * width.itemsize:
                raise ValueError(f"{shard.name}: bytes are not {width.itemsize} for each token")
        return self

    def split(self, name: SplitName) -> SplitManifest:
        return self.train if name == "train" else self.val

    @property
    def fingerprint(self) -> str:
        """Hash of everything that a training run reads from this folder."""
        return hashlib.sha256(self.model_dump_json(exclude={"merges_sample"}).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        write_text(folder / MANIFEST_FILE, self.model_dump_json(indent=2, exclude_none=True) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards. Raises UserError if there is none or it is damaged."""
    path = folder / MANIFEST_FILE
    text = read_text(path, missing="run `dvc repro tokenize` first", remedy=REMEDY)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError:
        raise UserError(f"{path}: damaged; {REMEDY}") from None


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of shards. Raises UserError unless it is the one that made them."""
    manifest, path = load_manifest(folder), folder / TOKENIZER_FILE
    check_file(path, missing=REMEDY)
    if sha256_file(path) != manifest.tokenizer_sha256:
        raise UserError(f"{path}: not the tokenizer that made the shards; {REMEDY}")
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != manifest.vocab_size:
        raise UserError(
            f"{folder / MANIFEST_FILE}: vocab_size is {manifest.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} ids; {REMEDY}"
        )
    return tokenizer


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest little-endian type that holds every id."""
    return NARROW if vocab_size <= 1 << 16 else WIDE


@dataclass
class ShardWriter:
    """Appends ids to `<split>-00000.bin`, `<split>-00001.bin`, ... of at most `shard_tokens` tokens.

    With `shards`, which an earlier writer returned, it goes on after the last of their tokens. Raises
    ValueError or OSError if they are not in the folder any more.
    """

    folder: Path
    split: SplitName
    dtype: np.dtype
    shard_tokens: int
    shards: Sequence[Shard] = ()

    def __post_init__(self) -> None:
        self._full: list[Shard] = list(self.shards[:-1])
        if self.shards:
            self._reopen()
        else:
            self._open()

    def append(self, ids: np.ndarray) -> None:
        """Add ids (any integer type), continuing in the next shard when this one is full."""
        while len(ids):
            if self._tokens == self.shard_tokens:
                self._full = self.close()
                self._open()
            part = ids[: self.shard_tokens - self._tokens].astype(self.dtype)
            content = part.tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._tokens += len(part)
            ids = ids[len(part) :]

    def sync(self) -> list[Shard]:
        """Flush what was written to disk, and return all shards as they are now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._tokens * self.dtype.itemsize
        now = Shard(name=self._path.name, tokens=self._tokens, bytes=size, sha256=self._hash.hexdigest())
        return [*self._full, now]

    def close(self) -> list[Shard]:
        """Finish the last shard and return all of them."""
        shards = self.sync()
        self._file.close()
        return shards

    def _open(self) -> None:
        self._path = self.folder / f"{self.split}-{len(self._full):05d}.bin"
        self._file = self._path.open("wb")
        self._hash = hashlib.sha256()
        self._tokens = 0

    def _reopen(self) -> None:
        for shard in self.shards:
            self._path = self.folder / shard.name
            os.truncate(self._path, shard.bytes)  # what came after these tokens is written again
            with self._path.open("rb") as file:
                self._hash = hashlib.file_digest(file, "sha256")
            if self._hash.hexdigest() != shard.sha256:
                raise ValueError(f"{shard.name} has changed")
            self._tokens = shard.tokens
        self._file = self._path.open("ab")


class OpenFile:
    """A file that is open for reading while something refers to it.

    Raises UserError if it is not the file with this `status` any more.
    """

    def __init__(self, path: str, status: tuple[int, ...]) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path}: was removed while it was in use; {REMEDY}") from None
        weakref.finalize(self, os.close, self.descriptor)
        if file_status(os.fstat(self.descriptor)) != status:
            raise UserError(f"{path}: was changed while it was in use; {REMEDY}")


def file_status(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from another one that was put in its place, and from itself after a change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class ShardFile:
    """The ids of a shard, read by slices `[start:stop]`. `opened` gives the file, whenever it is read.

    These are plain reads. A memory map would end the process with SIGBUS if the file is cut while it is in
    use, and the pages that it has touched would count as the process's memory.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokens: int, opened: Callable[[], OpenFile]) -> None:
        self._path, self.dtype, self._tokens, self._opened = path, dtype, tokens, opened

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, part: slice) -> np.ndarray:
        """Raises UserError if the file has been changed, or has become too short."""
        start, stop, _ = part.indices(self._tokens)
        ids = np.empty(max(0, stop - start), self.dtype)
        self.read_into(ids, start)
        return ids

    def read_into(self, row: np.ndarray, start: int) -> None:
        """Fill a `row` of this shard's type with the ids from `start` on; errors as for a slice."""
        file, offset = self._opened(), start * self.dtype.itemsize
        read = os.preadv(file.descriptor, [row.data], offset)
        while read < row.nbytes:  # one call reads at most 2 GB
            more = os.preadv(file.descriptor, [row.view(np.uint8)[read:].data], offset + read)
            if not more:
                raise UserError(f"{self._path}: was truncated while it was in use; {REMEDY}")
            read += more


class Tokens:
    """The tokens of one split as one sequence over its shards."""

    def __init__(self, arrays: Sequence[np.ndarray | ShardFile]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids start … stop - 1."""
        shard = int(np.searchsorted(self._ends[:-1], start, side="right"))
        parts: list[np.ndarray] = []
        while start < stop or not parts:
            offset = int(self._ends[shard]) - len(self._arrays[shard])
            end = min(stop, int(self._ends[shard]))
            parts.append(self._arrays[shard][start - offset : end - offset])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The ids of windows of `length` tokens: starts (N,) -> int64 (N, length)."""
        shards = np.searchsorted(self._ends[:-1], starts, side="right").tolist()
        rows = np.empty((len(starts), length), self._arrays[0].dtype)
        for row, start, shard in zip(rows, starts.tolist(), shards, strict=True):
            array, end = self._arrays[shard], int(self._ends[shard])
            if isinstance(array, ShardFile) and start + length <= end:
                array.read_into(row, start - end + len(array))
            else:
                row[:] = self.read(start, start + length)
        return rows.astype(np.int64)


def open_split(
    folder: Path, split: SplitName, first_tokens: int | None = None, verify: bool = True
) -> Tokens:
    """The tokens of a split, whose shards have the sizes that the manifest says.

    A shard is opened when it is read, and a limited number stays open. With `verify`, its hash is compared
    with the manifest's too: one process may do that for others which open the same files. A large shard is
    hashed once, and again when its size, times or inode have changed; `make verify` hashes it in any case.
    With `first_tokens`, only the shards that hold that many tokens are looked at. Raises UserError naming the
    shard that is missing, truncated or edited.
    """
    manifest, hashes = load_manifest(folder), HashCache(hashes_file())
    shards = manifest.split(split).shards
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    opened = lru_cache(_may_be_open(len(shards)))(OpenFile)
    files: list[ShardFile] = []
    for shard in shards:
        if first_tokens is not None and sum(len(file) for file in files) >= first_tokens:
            break
        path = folder / shard.name
        if not path.exists():
            raise UserError(f"{path}: missing shard; {REMEDY}")
        status = path.stat()
        _check_size(path, status.st_size, shard, dtype)
        if verify and (hashes.sha256(path) if shard.bytes >= LARGE else sha256_file(path)) != shard.sha256:
            raise UserError(f"{path}: edited shard, its sha256 is not the one in the manifest; {REMEDY}")
        open_it = partial(opened, str(path.absolute()), file_status(status))
        files.append(ShardFile(path, dtype, shard.tokens, open_it))
    hashes.save()
    return Tokens(files)


def _check_size(path: Path, size: int, shard: Shard, dtype: np.dtype) -> None:
    if size == shard.bytes:
        return
    other = WIDE if dtype == NARROW else NARROW
    kind = "truncated" if size < shard.bytes else "overlong"
    mixed = f", as if of {other.name} ids, not {dtype.name}" if size == shard.tokens * other.itemsize else ""
    raise UserError(f"{path}: {kind} shard, {size} bytes instead of {shard.bytes}{mixed}; {REMEDY}")


def _may_be_open(shards: int) -> int:
    """How many of the shards of a split are kept open: a quarter of the files that this process may open.

    Its limit is often 256 or 1,024, and is raised if that is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * min(shards, MOST_OPEN)
    if soft == resource.RLIM_INFINITY:
        return wanted // 4
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, soft) // 4
