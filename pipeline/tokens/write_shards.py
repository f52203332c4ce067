"""Turn a corpus into shards: choose the tokenizer, split into train and val, encode, write a manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from pipeline.config.errors import UserError
from pipeline.config.validation import Section
from pipeline.corpus.documents import (
    Piece,
    corpus_files,
    count_documents,
    fingerprint,
    read_pieces,
    text_bytes,
)
from pipeline.corpus.progress import progress
from pipeline.corpus.sources import IDS_FILES, META_FILE, DocumentSplit, GivenSplit, Split, TailSplit
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_text
from pipeline.storage.machine import check_disk
from pipeline.storage.resuming import PROGRESS_FILE, resuming_folder
from pipeline.tokens.keyed_random import uniform
from pipeline.tokens.nanogpt_ids import read_ids, read_meta
from pipeline.tokens.shards import Manifest, MergesSample, ShardWriter, SplitManifest, SplitName, token_dtype
from pipeline.tokens.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    train_bpe,
)

SPLITS: tuple[SplitName, ...] = ("train", "val")
GROUP_CHARACTERS = 1 << 18  # encoded by one thread at a time
MERGES_CHARACTERS = 1 << 26  # of the text that the merges of a BPE are learned on
MERGES_SEED = 2357
DRAWS = 1 << 14  # random numbers at once
MERGES_STREAM = np.uint64(0x3C6EF372FE94F82B)  # separates these draws from others of the same seed
MAX_SHARDS = 10_000  # a folder of more files is of no use to anybody
BYTES_PER_TOKEN = 2
# Most texts have fewer characters to a token of GPT-2's, so they need more disk than these two say.
CHARACTERS_PER_TOKEN = 6
SECONDS_BETWEEN_RECORDS = 10.0


def tokenize(
    raw: Path,
    split: Split,
    tokenizer_name: str,
    vocab_size: int,
    shard_tokens: int,
    folder: Path,
    pretrained: Tokenizer | None = None,
    workers: int | None = None,
) -> Manifest:
    """Encode all of `raw` into `folder`, which is replaced only when everything is written.

    The tokenizer is `pretrained`, or the one called `tokenizer_name` if `pretrained` is None. In a corpus of
    several documents, the end-of-text id follows each. Ids that nanoGPT prepared are copied unchanged. After
    an interruption, a call for the same text and with the same arguments goes on where it ended. The text is
    encoded by `workers` threads, by default one for each CPU core; what they write does not depend on that.

    Raises UserError for text that cannot be read, for a split of fewer than two tokens, for ids of another
    tokenizer, and for shards so small that there would be more than MAX_SHARDS.
    """
    corpus: Corpus | IdFiles = (
        IdFiles(raw)
        if isinstance(split, GivenSplit)
        else Corpus(raw, count_documents(raw), _count_characters(raw), split)
    )
    _check_number_of_shards(corpus.most_tokens, shard_tokens)
    source_sha256 = fingerprint(corpus.files)
    key = {
        "source_sha256": source_sha256,
        "meta": [sha256_file(path) for path in raw.glob(META_FILE)],
        "split": split.model_dump(),
        "tokenizer": [tokenizer_name, vocab_size, pretrained and _sha256(pretrained)],
        "shard_tokens": shard_tokens,
        "code": fingerprint(_code()),
    }
    letters = isinstance(corpus, IdFiles) or tokenizer_name in ("char", "byte")
    with resuming_folder(folder, key) as partial:
        needed = corpus.most_tokens / (1 if letters else CHARACTERS_PER_TOKEN) * BYTES_PER_TOKEN
        check_disk(folder, needed - sum(path.stat().st_size for path in partial.glob("*.bin")), "its shards")
        try:
            writer = TokensWriter.resumed(partial, shard_tokens)
            if writer is None:
                tokenizer, merges = corpus.tokenizer(tokenizer_name, vocab_size, pretrained)
                writer = TokensWriter(partial, tokenizer, shard_tokens, source_sha256, merges)
            for parts in corpus.encoded(writer.tokenizer, writer.pieces, workers or _cores()):
                writer.append(parts)
            manifest = writer.close()
            for name in SPLITS:
                if manifest.split(name).tokens < 2:
                    raise UserError(
                        f"{raw}: split.fraction leaves no token to predict in the {name} split ({corpus}); "
                        "change it in dataset.yaml or add text"
                    )
        except UserError:
            shutil.rmtree(partial)  # the next attempt would fail in the same way
            raise
    return manifest


class EncodedPiece(NamedTuple):
    """Some ids of a split, the number of documents that end there, and the bytes of text they stand for."""

    split: SplitName
    ids: np.ndarray
    documents: int
    utf8_bytes: int


@dataclass(frozen=True)
class Corpus:
    """The raw text in pieces of documents; each piece is labelled with the split that it belongs to."""

    raw: Path
    documents: int
    characters: int
    split: TailSplit | DocumentSplit

    def __str__(self) -> str:
        return f"{self.documents} documents, {self.characters} characters"

    @property
    def files(self) -> list[Path]:
        return corpus_files(self.raw)

    @property
    def most_tokens(self) -> int:
        """Tokens are rarely shorter than a character."""
        return self.characters + self.documents

    def tokenizer(
        self, name: str, vocab_size: int, pretrained: Tokenizer | None
    ) -> tuple[Tokenizer, MergesSample | None]:
        """`pretrained`, or the tokenizer called `name` if `pretrained` is None; and what its merges are from.

        `bpe` learns its vocabulary from a sample of the training split only. `char` lists the characters of
        the whole corpus, as nanoGPT does.
        """
        if pretrained is not None:
            return pretrained, None
        if name == "char":
            with progress("find characters", " characters", self.characters) as advance:
                characters = set[str]()
                for _, piece in self.pieces():
                    characters.update(piece.text)
                    advance(len(piece.text))
            return CharTokenizer(characters, end_of_text=self.documents > 1), None
        if name == "byte":
            return ByteTokenizer(end_of_text=self.documents > 1), None
        if name == "bpe":
            return self._learn_bpe(vocab_size)
        return gpt2_tokenizer(), None

    def _learn_bpe(self, vocab_size: int) -> tuple[Tokenizer, MergesSample]:
        """Learn merges on each piece of the training split, or on as many as MERGES_CHARACTERS, at random."""
        of = int(self.characters * (1 - self.split.fraction)) or 1  # about; documents have different lengths
        characters = 0

        def sample(advance: Callable[[int], None]) -> Iterator[str]:
            nonlocal characters
            for (split, piece), number in zip(self.pieces(), _draws(), strict=False):
                if split == "train" and number * of < MERGES_CHARACTERS:
                    characters += len(piece.text)
                    yield piece.text
                advance(len(piece.text))

        with progress("learn merges", " characters", self.characters) as advance:
            tokenizer = train_bpe(sample(advance), vocab_size)
        return tokenizer, MergesSample(characters=characters, seed=MERGES_SEED)

    def encoded(self, tokenizer: Tokenizer, skip: int, workers: int) -> Iterator[list[EncodedPiece]]:
        """Encode the corpus group by group, with `workers` threads, but for the first `skip` pieces.

        If there are several documents, an end-of-text id follows each.
        """
        end = tokenizer.end_of_text if self.documents > 1 else None

        def encode(group: list[tuple[SplitName, Piece]]) -> list[EncodedPiece]:
            return [_encode(split, piece, tokenizer, end) for split, piece in group]

        pieces = self.pieces()
        done = sum(len(piece.text) for _, piece in islice(pieces, skip))
        with (
            progress("tokenize", " characters", self.characters, done) as advance,
            ThreadPoolExecutor(workers) as threads,
        ):
            waiting = deque[tuple[int, Future[list[EncodedPiece]]]]()
            for group in _grouped(pieces):
                waiting.append((sum(len(piece.text) for _, piece in group), threads.submit(encode, group)))
                if len(waiting) > 2 * workers:  # enough to keep them busy, yet little memory
                    characters, encoded = waiting.popleft()
                    yield encoded.result()
                    advance(characters)
            for characters, encoded in waiting:
                yield encoded.result()
                advance(characters)

    def pieces(self) -> Iterator[tuple[SplitName, Piece]]:
        if isinstance(self.split, DocumentSplit):
            return self._by_document(self.split)
        return self._by_tail(self.split)

    def _by_document(self, split: DocumentSplit) -> Iterator[tuple[SplitName, Piece]]:
        """Draw whole documents as `datasets.train_test_split` does, which reproduces nanoGPT's split."""
        if self.documents < 2:
            raise UserError(
                f"{self.raw}: one document cannot be split by documents; use `by: tail` in dataset.yaml"
            )
        order = np.random.default_rng(split.seed).permutation(self.documents)
        validation = set(order[: ceil(split.fraction * self.documents)].tolist())
        for piece in read_pieces(self.raw):
            yield ("val" if piece.document in validation else "train"), piece

    def _by_tail(self, split: TailSplit) -> Iterator[tuple[SplitName, Piece]]:
        """Validate on the last characters of the corpus, even if that cuts a document in two."""
        boundary = int(self.characters * (1 - split.fraction))
        position = 0
        for piece in read_pieces(self.raw):
            cut = boundary - position
            position += len(piece.text)
            if 0 < cut < len(piece.text):
                yield "train", Piece(piece.document, piece.text[:cut], last=False)
                yield "val", Piece(piece.document, piece.text[cut:], piece.last)
            else:
                yield ("train" if cut > 0 else "val"), piece


@dataclass(frozen=True)
class IdFiles:
    """Ids that nanoGPT prepared, in train.bin and val.bin: of the characters in meta.pkl, or else GPT-2's."""

    raw: Path

    @property
    def files(self) -> list[Path]:
        return [self.raw / name for name in IDS_FILES]

    @property
    def most_tokens(self) -> int:
        return sum(path.stat().st_size for path in self.files) // 2  # 16 bits each

    def tokenizer(self, name: str, vocab_size: int, pretrained: Tokenizer | None) -> tuple[Tokenizer, None]:
        """The tokenizer that made the ids. Raises UserError if `name` or `pretrained` asks for another."""
        of_characters = (self.raw / META_FILE).exists()
        needed = "char" if of_characters else "gpt2"
        if pretrained is not None or name == needed:
            own = read_meta(self.raw / META_FILE) if of_characters else gpt2_tokenizer()
            if pretrained is None or own.vocabulary == pretrained.vocabulary:
                return own, None
        held = "ids of characters" if of_characters else "GPT-2's ids (no meta.pkl)"
        raise UserError(f"tokenizer.name = {name}: {self.raw} holds {held}; set tokenizer.name to {needed}")

    def encoded(self, tokenizer: Tokenizer, skip: int, workers: int) -> Iterator[list[EncodedPiece]]:
        """Yield the ids unchanged, but for the first `skip` pieces."""
        for piece in islice(self._pieces(tokenizer), skip, None):
            yield [piece]

    def _pieces(self, tokenizer: Tokenizer) -> Iterator[EncodedPiece]:
        for split, path in zip(SPLITS, self.files, strict=True):
            for ids in read_ids(path, tokenizer.vocab_size):
                ends = 0 if tokenizer.end_of_text is None else int((ids == tokenizer.end_of_text).sum())
                yield EncodedPiece(split, ids, ends, int(tokenizer.token_bytes[ids].sum()))


class SplitWriter:
    """Writes one split's shards and counts what goes into them; it may go on after what is `written`."""

    def __init__(
        self,
        folder: Path,
        name: SplitName,
        tokenizer: Tokenizer,
        shard_tokens: int,
        written: SplitManifest | None = None,
    ) -> None:
        shards = written.shards if written else ()
        self._writer = ShardWriter(folder, name, token_dtype(tokenizer.vocab_size), shard_tokens, shards)
        self._documents = written.documents if written else 0
        self._utf8_bytes = written.utf8_bytes if written else 0

    def append(self, part: EncodedPiece) -> None:
        self._writer.append(part.ids)
        self._documents += part.documents
        self._utf8_bytes += part.utf8_bytes

    def sync(self) -> SplitManifest:
        """What is written and on disk."""
        shards = self._writer.sync()
        return SplitManifest(
            tokens=sum(shard.tokens for shard in shards),
            documents=self._documents,
            utf8_bytes=self._utf8_bytes,
            shards=shards,
        )

    def close(self) -> None:
        self._writer.close()


class Unfinished(Section):
    """How far a TokensWriter came: the first `pieces` pieces are in the shards of `manifest`."""

    pieces: NonNegativeInt
    manifest: Manifest


class TokensWriter:
    """Writes tokenizer, shards and manifest, and now and then a record of what is on disk.

    After an interruption, `resumed` goes on from the record.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        shard_tokens: int,
        source_sha256: str,
        merges_sample: MergesSample | None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.pieces = unfinished.pieces if unfinished else 0
        self._folder = folder
        self._source_sha256 = source_sha256
        self._merges_sample = merges_sample
        written = {name: unfinished.manifest.split(name) for name in SPLITS} if unfinished else {}
        self._splits = {
            name: SplitWriter(folder, name, tokenizer, shard_tokens, written.get(name)) for name in SPLITS
        }
        if unfinished is None:
            tokenizer.save(folder)
        self._record()

    @classmethod
    def resumed(cls, folder: Path, shard_tokens: int) -> TokensWriter | None:
        """A writer that goes on after what the record in `folder` lists; None if that is not all there."""
        try:
            text = (folder / PROGRESS_FILE).read_text(encoding="utf-8")
            unfinished = Unfinished.model_validate_json(text)
            manifest, tokenizer = unfinished.manifest, load_tokenizer(folder)
            if _sha256(tokenizer) != manifest.tokenizer_sha256:
                return None
            writer = cls(
                folder, tokenizer, shard_tokens, manifest.source_sha256, manifest.merges_sample, unfinished
            )
        except (OSError, ValueError):
            return None
        tokens = manifest.train.tokens + manifest.val.tokens
        print(f"{folder}: an interrupted call wrote {tokens:,} tokens; going on from there", file=sys.stderr)
        return writer

    def append(self, parts: Sequence[EncodedPiece]) -> None:
        for part in parts:
            self._splits[part.split].append(part)
        self.pieces += len(parts)
        if time.monotonic() - self._recorded >= SECONDS_BETWEEN_RECORDS:
            self._record()

    def close(self) -> Manifest:
        manifest = self._record()
        for split in self._splits.values():
            split.close()
        manifest.save(self._folder)
        return manifest

    def _record(self) -> Manifest:
        splits = {name: split.sync() for name, split in self._splits.items()}
        manifest = Manifest(
            dtype="uint16" if token_dtype(self.tokenizer.vocab_size).itemsize == 2 else "uint32",
            vocab_size=self.tokenizer.vocab_size,
            tokenizer_sha256=_sha256(self.tokenizer),
            source_sha256=self._source_sha256,
            merges_sample=self._merges_sample,
            train=splits["train"],
            val=splits["val"],
        )
        record = Unfinished(pieces=self.pieces, manifest=manifest)
        write_text(self._folder / PROGRESS_FILE, record.model_dump_json())
        self._recorded = time.monotonic()
        return manifest


def _check_number_of_shards(tokens: int, shard_tokens: int) -> None:
    if tokens > MAX_SHARDS * shard_tokens:
        raise UserError(
            f"data.shard_tokens = {shard_tokens}: would write about {ceil(tokens / shard_tokens):,} shards; "
            f"use at least {ceil(tokens / MAX_SHARDS)}"
        )


def _sha256(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _code() -> list[Path]:
    """The files that decide how text becomes shards."""
    library = Path(__file__).parents[1]
    return sorted(path for room in ("corpus", "tokens") for path in (library / room).glob("*.py"))


def _grouped(pieces: Iterable[tuple[SplitName, Piece]]) -> Iterator[list[tuple[SplitName, Piece]]]:
    group: list[tuple[SplitName, Piece]] = []
    characters = 0
    for labelled in pieces:
        group.append(labelled)
        characters += len(labelled[1].text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _encode(split: SplitName, piece: Piece, tokenizer: Tokenizer, end: int | None) -> EncodedPiece:
    ids = tokenizer.encode(piece.text)
    if piece.last and end is not None:
        ids = np.append(ids, np.uint32(end))
    return EncodedPiece(split, ids, int(piece.last), len(piece.text.encode()))


def _draws() -> Iterator[float]:
    """Uniform numbers in [0, 1), one for each piece of a corpus."""
    for first in count(0, DRAWS):
        yield from uniform(MERGES_SEED, MERGES_STREAM, np.arange(first, first + DRAWS)).tolist()


def _count_characters(raw: Path) -> int:
    """The number of characters in the corpus. This reads, and so checks, all of the text."""
    characters = 0
    with progress("read", " characters", text_bytes(raw)) as advance:  # as many characters as bytes, or fewer
        for piece in read_pieces(raw):
            characters += len(piece.text)
            advance(len(piece.text))
    return characters


def _cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
