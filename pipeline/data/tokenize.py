"""Raw text to shards: choose the tokenizer, split into train and val, encode, write a manifest."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.data.documents import Piece, count_characters, count_documents, fingerprint, read_pieces
from pipeline.data.shards import Manifest, ShardWriter, SplitManifest, SplitName, token_dtype
from pipeline.data.sources import DocumentSplit, Split, TailSplit
from pipeline.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, gpt2_tokenizer, train_bpe
from pipeline.errors import UserError
from pipeline.files import replacing_folder

SPLITS: tuple[SplitName, ...] = ("train", "val")
BATCH_CHARACTERS = 1 << 23  # encoded at once: enough to keep every core busy, small next to memory


def tokenize(
    raw: Path, split: Split, tokenizer_name: str, vocab_size: int, shard_tokens: int, folder: Path
) -> Manifest:
    """Encode all of `raw` into `folder`, which appears only once it is whole.

    The end-of-text id follows each document of a corpus of several. Raises UserError for text that cannot
    be read or that leaves a split empty.
    """
    documents = count_documents(raw)
    corpus = Corpus(raw, documents, count_characters(raw), split)
    tokenizer = make_tokenizer(tokenizer_name, vocab_size, corpus)
    with replacing_folder(folder) as temporary:
        writers = {name: SplitWriter(temporary, name, tokenizer, shard_tokens) for name in SPLITS}
        with tqdm(
            total=corpus.characters,
            unit="char",
            unit_scale=True,
            desc="tokenize",
            disable=not sys.stderr.isatty(),
        ) as progress:
            for batch in _batched(corpus.pieces()):
                ids = tokenizer.encode_batch([piece.text for _, piece in batch])
                for (name, piece), encoded in zip(batch, ids, strict=True):
                    writers[name].append(piece, encoded, mark_end=documents > 1)
                progress.update(sum(len(piece.text) for _, piece in batch))
        splits = {name: writer.close() for name, writer in writers.items()}
        for name, written in splits.items():
            if written.tokens < 2:
                raise UserError(
                    f"{raw}: split.fraction leaves no token to predict for {name} ({documents} documents, "
                    f"{corpus.characters} characters); change it in dataset.yaml or add text"
                )
        tokenizer.save(temporary)
        manifest = Manifest(
            dtype="uint16" if token_dtype(tokenizer.vocab_size).itemsize == 2 else "uint32",
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
            source_sha256=fingerprint(raw),
            train=splits["train"],
            val=splits["val"],
        )
        manifest.save(temporary)
    return manifest


@dataclass(frozen=True)
class Corpus:
    """The raw text, document by document, each piece labelled with the split it belongs to."""

    raw: Path
    documents: int
    characters: int
    split: Split

    def pieces(self) -> Iterator[tuple[SplitName, Piece]]:
        if isinstance(self.split, DocumentSplit):
            return self._by_document(self.split)
        return self._by_tail(self.split)

    def _by_document(self, split: DocumentSplit) -> Iterator[tuple[SplitName, Piece]]:
        """Whole documents, drawn as `datasets.train_test_split` draws them, so nanoGPT's split comes out."""
        if self.documents < 2:
            raise UserError(
                f"{self.raw}: one document cannot be split by documents; use `by: tail` in dataset.yaml"
            )
        order = np.random.default_rng(split.seed).permutation(self.documents)
        validation = set(order[: ceil(split.fraction * self.documents)].tolist())
        for piece in read_pieces(self.raw):
            yield ("val" if piece.document in validation else "train"), piece

    def _by_tail(self, split: TailSplit) -> Iterator[tuple[SplitName, Piece]]:
        """The last characters of the corpus are validation text, wherever that cuts."""
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


def make_tokenizer(name: str, vocab_size: int, corpus: Corpus) -> Tokenizer:
    """The tokenizer called `name`; `char` and `bpe` learn their vocabulary from the corpus.

    `bpe` learns from the training text alone; `char` lists the characters of all of it, as nanoGPT does.
    """
    if name == "char":
        characters: set[str] = set()
        for _, piece in corpus.pieces():
            characters.update(piece.text)
        return CharTokenizer(characters, end_of_text=corpus.documents > 1)
    if name == "byte":
        return ByteTokenizer(end_of_text=corpus.documents > 1)
    if name == "bpe":
        return train_bpe((piece.text for split, piece in corpus.pieces() if split == "train"), vocab_size)
    return gpt2_tokenizer()


class SplitWriter:
    """Writes one split's shards and counts what goes into them."""

    def __init__(self, folder: Path, name: SplitName, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._writer = ShardWriter(folder, name, token_dtype(tokenizer.vocab_size), shard_tokens)
        self._end_of_text = tokenizer.end_of_text
        self._documents = 0
        self._utf8_bytes = 0

    def append(self, piece: Piece, ids: np.ndarray, mark_end: bool) -> None:
        self._writer.append(ids)
        self._utf8_bytes += len(piece.text.encode())
        self._documents += piece.last
        if piece.last and mark_end:
            self._writer.append(np.array([self._end_of_text]))

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
