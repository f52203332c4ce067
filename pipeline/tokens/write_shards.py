"""Turn a corpus into shards: choose the tokenizer, split into train and val, encode, write a manifest."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.config.errors import UserError
from pipeline.corpus.documents import (
    Piece,
    corpus_files,
    count_characters,
    count_documents,
    fingerprint,
    read_pieces,
)
from pipeline.corpus.sources import IDS_FILES, META_FILE, DocumentSplit, GivenSplit, Split, TailSplit
from pipeline.storage.files import replacing_folder
from pipeline.tokens.nanogpt_ids import read_ids, read_meta
from pipeline.tokens.shards import Manifest, ShardWriter, SplitManifest, SplitName, token_dtype
from pipeline.tokens.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    train_bpe,
)

SPLITS: tuple[SplitName, ...] = ("train", "val")
BATCH_CHARACTERS = 1 << 23  # encoded together: enough to keep every core busy, yet little memory


def tokenize(
    raw: Path,
    split: Split,
    tokenizer_name: str,
    vocab_size: int,
    shard_tokens: int,
    folder: Path,
    pretrained: Tokenizer | None = None,
) -> Manifest:
    """Encode all of `raw` into `folder`, which is replaced only when everything is written.

    The tokenizer is `pretrained`, or the one called `tokenizer_name` if `pretrained` is None. In a corpus of
    several documents, the end-of-text id follows each. Ids that nanoGPT prepared are copied unchanged. Raises
    UserError for text that cannot be read, for a split of fewer than two tokens, and for ids of another
    tokenizer.
    """
    corpus: Corpus | IdFiles = (
        IdFiles(raw)
        if isinstance(split, GivenSplit)
        else Corpus(raw, count_documents(raw), count_characters(raw), split)
    )
    tokenizer = corpus.tokenizer(tokenizer_name, vocab_size, pretrained)
    with replacing_folder(folder) as temporary:
        writers = {name: SplitWriter(temporary, name, tokenizer, shard_tokens) for name in SPLITS}
        for part in corpus.encoded(tokenizer):
            writers[part.split].append(part)
        splits = {name: writer.close() for name, writer in writers.items()}
        for name, written in splits.items():
            if written.tokens < 2:
                raise UserError(
                    f"{raw}: split.fraction leaves no token to predict in the {name} split ({corpus}); "
                    "change it in dataset.yaml or add text"
                )
        tokenizer.save(temporary)
        manifest = Manifest(
            dtype="uint16" if token_dtype(tokenizer.vocab_size).itemsize == 2 else "uint32",
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
            source_sha256=fingerprint(corpus.files),
            train=splits["train"],
            val=splits["val"],
        )
        manifest.save(temporary)
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

    def tokenizer(self, name: str, vocab_size: int, pretrained: Tokenizer | None) -> Tokenizer:
        """`pretrained`, or the tokenizer called `name` if `pretrained` is None.

        `bpe` learns its vocabulary from the training split only. `char` lists the characters of the whole
        corpus, as nanoGPT does.
        """
        if pretrained is not None:
            return pretrained
        if name == "char":
            characters: set[str] = set()
            for _, piece in self.pieces():
                characters.update(piece.text)
            return CharTokenizer(characters, end_of_text=self.documents > 1)
        if name == "byte":
            return ByteTokenizer(end_of_text=self.documents > 1)
        if name == "bpe":
            return train_bpe((piece.text for split, piece in self.pieces() if split == "train"), vocab_size)
        return gpt2_tokenizer()

    def encoded(self, tokenizer: Tokenizer) -> Iterator[EncodedPiece]:
        """Encode the corpus, with an end-of-text id after each document if there are several."""
        end = tokenizer.end_of_text if self.documents > 1 else None
        with tqdm(
            total=self.characters,
            unit="char",
            unit_scale=True,
            desc="tokenize",
            disable=not sys.stderr.isatty(),
        ) as progress:
            for batch in _batched(self.pieces()):
                encoded = tokenizer.encode_batch([piece.text for _, piece in batch])
                for (split, piece), ids in zip(batch, encoded, strict=True):
                    if piece.last and end is not None:
                        ids = np.append(ids, np.uint32(end))
                    yield EncodedPiece(split, ids, int(piece.last), len(piece.text.encode()))
                progress.update(sum(len(piece.text) for _, piece in batch))

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

    def tokenizer(self, name: str, vocab_size: int, pretrained: Tokenizer | None) -> Tokenizer:
        """The tokenizer that made the ids. Raises UserError if `name` or `pretrained` asks for another."""
        of_characters = (self.raw / META_FILE).exists()
        needed = "char" if of_characters else "gpt2"
        if pretrained is not None or name == needed:
            own = read_meta(self.raw / META_FILE) if of_characters else gpt2_tokenizer()
            if pretrained is None or own.vocabulary == pretrained.vocabulary:
                return own
        held = "ids of characters" if of_characters else "GPT-2's ids (no meta.pkl)"
        raise UserError(f"tokenizer.name = {name}: {self.raw} holds {held}; set tokenizer.name to {needed}")

    def encoded(self, tokenizer: Tokenizer) -> Iterator[EncodedPiece]:
        """Yield the ids unchanged."""
        for split, path in zip(SPLITS, self.files, strict=True):
            for ids in read_ids(path, tokenizer.vocab_size):
                ends = 0 if tokenizer.end_of_text is None else int((ids == tokenizer.end_of_text).sum())
                yield EncodedPiece(split, ids, ends, int(tokenizer.token_bytes[ids].sum()))


class SplitWriter:
    """Writes one split's shards and counts what goes into them."""

    def __init__(self, folder: Path, name: SplitName, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._writer = ShardWriter(folder, name, token_dtype(tokenizer.vocab_size), shard_tokens)
        self._documents = 0
        self._utf8_bytes = 0

    def append(self, part: EncodedPiece) -> None:
        self._writer.append(part.ids)
        self._documents += part.documents
        self._utf8_bytes += part.utf8_bytes

    def close(self) -> SplitManifest:
        shards = self._writer.close()
        return SplitManifest(
            tokens=sum(shard.tokens for shard in shards),
            documents=self._documents,
            utf8_bytes=self._utf8_bytes,
            shards=shards,
        )


def _batched(pieces: Iterable[tuple[SplitName, Piece]]) -> Iterator[list[tuple[SplitName, Piece]]]:
    batch: list[tuple[SplitName, Piece]] = []
    characters = 0
    for labelled in pieces:
        batch.append(labelled)
        characters += len(labelled[1].text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
