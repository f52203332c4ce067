"""A corpus as token ids: its split into train and val, its tokenizer, and its text encoded in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.errors import UserError
from pipeline.corpus.documents import Piece, corpus_files, count_documents, read_pieces, text_bytes
from pipeline.corpus.progress import progress
from pipeline.corpus.sources import IDS_FILES, META_FILE, DocumentSplit, TailSplit
from pipeline.storage.machine import cores
from pipeline.tokens.keyed_random import uniform
from pipeline.tokens.nanogpt_ids import read_ids, read_meta
from pipeline.tokens.shards import MergesSample, SplitName
from pipeline.tokens.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    train_bpe,
)

SPLITS: tuple[SplitName, ...] = ("train", "val")
GROUP_CHARACTERS = 1 << 18  # encoded by one thread at a time
MERGES_CHARACTERS = 1 << 26  # of the text that the merges of a BPE are learned on
MERGES_SEED = 2357
DRAWS = 1 << 14  # random numbers at once
MERGES_STREAM = np.uint64(0x3C6EF372FE94F82B)  # separates these draws from others of the same seed


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
    split: TailSplit | DocumentSplit

    @cached_property
    def documents(self) -> int:
        return count_documents(self.raw)

    @cached_property
    def characters(self) -> int:
        """The number of characters in the corpus. Counting them reads, and so checks, all of the text."""
        characters = 0
        with progress("read", " characters", text_bytes(self.raw)) as advance:  # as many as bytes, or fewer
            for piece in read_pieces(self.raw):
                characters += len(piece.text)
                advance(len(piece.text))
        return characters

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

    def encoded(
        self, tokenizer: Tokenizer, skip: int, workers: int | None, folder: Path
    ) -> Iterator[list[EncodedPiece]]:
        """Encode the corpus group by group, with `workers` threads, but for the first `skip` pieces.

        If there are several documents, an end-of-text id follows each.
        """
        end, workers = self.end_of_text(tokenizer), workers or cores()

        def encode_group(group: list[tuple[SplitName, Piece]]) -> list[EncodedPiece]:
            return [encoded_piece(split, piece, tokenizer, end) for split, piece in group]

        pieces = self.pieces()
        done = sum(len(piece.text) for _, piece in islice(pieces, skip))
        with (
            progress("tokenize", " characters", self.characters, done) as advance,
            ThreadPoolExecutor(workers) as threads,
        ):
            waiting = deque[tuple[int, Future[list[EncodedPiece]]]]()
            for group in _grouped(pieces):
                waiting.append(
                    (sum(len(piece.text) for _, piece in group), threads.submit(encode_group, group))
                )
                if len(waiting) > 2 * workers:  # enough to keep them busy, yet little memory
                    characters, encoded = waiting.popleft()
                    yield encoded.result()
                    advance(characters)
            for characters, encoded in waiting:
                yield encoded.result()
                advance(characters)

    def end_of_text(self, tokenizer: Tokenizer) -> int | None:
        """The id that follows each document; None if it is the only one."""
        return tokenizer.end_of_text if self.documents > 1 else None

    def pieces(self) -> Iterator[tuple[SplitName, Piece]]:
        """The corpus piece by piece, each with its split; a piece that belongs to both is cut in two."""
        is_val, boundary = self.division(self.characters)
        position = 0
        for piece in read_pieces(self.raw):
            split: SplitName = "val" if is_val(piece.document, position) else "train"
            cut = boundary - position
            if 0 < cut < len(piece.text):
                yield "train", Piece(piece.document, piece.text[:cut], last=False)
                yield "val", Piece(piece.document, piece.text[cut:], piece.last)
            else:
                yield split, piece
            position += len(piece.text)

    def division(self, characters: int) -> tuple[Callable[[Any, Any], Any], int]:
        """How a corpus of so many characters is divided into train and val.

        Returns a function of the document and the position of a piece (numbers or arrays), which tells
        whether it begins in val; and the position at which a piece that begins in train goes over into val.
        Positions are in characters of the whole corpus.
        """
        split = self.split
        if isinstance(split, TailSplit):  # of the corpus, even if that cuts a document in two
            boundary = int(characters * (1 - split.fraction))
            return (lambda document, position: position >= boundary), boundary
        if self.documents < 2:
            raise UserError(
                f"{self.raw}: one document cannot be split by documents; use `by: tail` in dataset.yaml"
            )
        # As `datasets.train_test_split` draws them, which reproduces nanoGPT's split.
        order = np.random.default_rng(split.seed).permutation(self.documents)
        validation = np.zeros(self.documents, dtype=bool)
        validation[order[: ceil(split.fraction * self.documents)]] = True
        return (lambda document, position: validation[document]), characters


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

    def encoded(
        self, tokenizer: Tokenizer, skip: int, workers: int | None, folder: Path
    ) -> Iterator[list[EncodedPiece]]:
        """Yield the ids unchanged, but for the first `skip` pieces."""
        for piece in islice(self._pieces(tokenizer), skip, None):
            yield [piece]

    def _pieces(self, tokenizer: Tokenizer) -> Iterator[EncodedPiece]:
        for split, path in zip(SPLITS, self.files, strict=True):
            for ids in read_ids(path, tokenizer.vocab_size):
                ends = 0 if tokenizer.end_of_text is None else int((ids == tokenizer.end_of_text).sum())
                yield EncodedPiece(split, ids, ends, int(tokenizer.token_bytes[ids].sum()))


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


def encoded_piece(split: SplitName, piece: Piece, tokenizer: Tokenizer, end: int | None) -> EncodedPiece:
    """A piece as ids, with `end` after the last piece of a document unless it is None."""
    ids = tokenizer.encode(piece.text)
    if piece.last and end is not None:
        ids = np.append(ids, np.uint32(end))
    return EncodedPiece(split, ids, int(piece.last), len(piece.text.encode()))


def _draws() -> Iterator[float]:
    """Uniform numbers in [0, 1), one for each piece of a corpus."""
    for first in count(0, DRAWS):
        yield from uniform(MERGES_SEED, MERGES_STREAM, np.arange(first, first + DRAWS)).tolist()
