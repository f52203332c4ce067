"""Shards, which are files of little-endian token ids without a header, and the manifest that lists them.

Ids are uint16 for a vocabulary of up to 65,536, else uint32. `numpy.memmap` can read a shard as it is, and so
can nanoGPT if it is uint16.
"""

from __future__ import annotations

import hashlib
import os
import resource
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
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
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


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


class OpenShard:
    """The ids of a shard file, read by slices `[start:stop]`.

    A memory map would be as fast, but ends the process with SIGBUS if the file is cut while it is in use.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokens: int) -> None:
        self._path, self.dtype, self._tokens = path, dtype, tokens
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, part: slice) -> np.ndarray:
        """Raises UserError if the file has become too short."""
        start, stop, _ = part.indices(self._tokens)
        offset, end = (position * self.dtype.itemsize for position in (start, max(start, stop)))
        content = bytearray()
        while offset < end:  # one call reads at most 2 GB
            read = os.pread(self._descriptor, end - offset, offset)
            if not read:
                raise UserError(f"{self._path}: was truncated while it was in use; {REMEDY}")
            content += read
            offset += len(read)
        return np.frombuffer(content, self.dtype)

    def read_into(self, row: np.ndarray, start: int) -> None:
        """Fill a `row` of this shard's type with the ids from `start` on; errors as for a slice."""
        if os.preadv(self._descriptor, [row.data], start * self.dtype.itemsize) != row.nbytes:
            row[:] = self[start : start + len(row)]  # what one call left out


class Tokens:
    """The tokens of one split as one sequence over its shards."""

    def __init__(self, arrays: Sequence[np.ndarray | OpenShard]) -> None:
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
            if isinstance(array, OpenShard) and start + length <= end:
                array.read_into(row, start - end + len(array))
            else:
                row[:] = self.read(start, start + length)
        return rows.astype(np.int64)


def open_split(folder: Path, split: SplitName, first_tokens: int | None = None) -> Tokens:
    """Open a split, and verify its shards against the manifest.

    A large shard is hashed once, and again when its size, times or inode have changed; `make verify` hashes
    it in any case. With `first_tokens`, only the shards that hold that many tokens are opened. Raises
    UserError naming the shard that is missing, truncated or edited.
    """
    manifest, hashes = load_manifest(folder), HashCache(hashes_file())
    arrays: list[OpenShard] = []
    _allow_open_files(len(manifest.split(split).shards))
    for shard in manifest.split(split).shards:
        if first_tokens is not None and sum(len(array) for array in arrays) >= first_tokens:
            break
        path = folder / shard.name
        if not path.exists():
            raise UserError(f"{path}: missing shard; {REMEDY}")
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(f"{path}: truncated shard, {size} bytes instead of {shard.bytes}; {REMEDY}")
        if (hashes.sha256(path) if size >= LARGE else sha256_file(path)) != shard.sha256:
            raise UserError(f"{path}: edited shard, its sha256 is not the one in the manifest; {REMEDY}")
        arrays.append(OpenShard(path, np.dtype(manifest.dtype).newbyteorder("<"), shard.tokens))
    hashes.save()
    return Tokens(arrays)


def _allow_open_files(number: int) -> None:
    """Raise this process's limit of open files, often 256 or 1,024, if so many more could exceed it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + number + 200
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
