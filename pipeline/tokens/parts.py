"""A large corpus as token ids: each part encoded alone, into files, and the parts put together.

Where the parts begin depends on the corpus alone. To encode one, nothing has to be known of the others: what
belongs to train and what to val is decided when all are encoded. So the text is read once.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, cast

import numpy as np

from pipeline.config.errors import UserError
from pipeline.corpus.documents import Piece, Span, corpus_parts, read_part, text_bytes
from pipeline.corpus.progress import progress
from pipeline.storage.checksums import sha256_file
from pipeline.tokens.encode import Corpus, EncodedPiece, encoded_piece
from pipeline.tokens.shards import token_dtype
from pipeline.tokens.tokenizers import Tokenizer

PART_BYTES = 1 << 24
MOST_PARTS = 1000  # about; Slurm allows 1,001 tasks in a job unless its administrator changed that
READ_IDS = 1 << 20  # at once


@dataclass(frozen=True)
class LargeCorpus(Corpus):
    """A corpus that several processes encode, part by part. Its text is not read in advance."""

    parts: Sequence[Sequence[Span]]
    executor: str

    @property
    def most_tokens(self) -> int:
        return text_bytes(self.raw) + self.documents  # a character takes a byte or more

    def encoded(
        self, tokenizer: Tokenizer, skip: int, workers: int | None, folder: Path
    ) -> Iterator[list[EncodedPiece]]:
        """Encode what is not finished in `folder`, and yield all ids, but for the first `skip` pieces.

        A piece here is what follows each other in one part and one split. Raises UserError for text that
        cannot be read, and ChildProcessError if a worker ended otherwise.
        """
        from pipeline.tokens.tasks import run_tasks  # datatrove takes a third of a second

        folder.mkdir(exist_ok=True)
        run_tasks(self.executor, self.parts, self.end_of_text(tokenizer), workers, folder)
        for piece in islice(self._pieces(tokenizer, folder), skip, None):
            yield [piece]

    def _pieces(self, tokenizer: Tokenizer, folder: Path) -> Iterator[EncodedPiece]:
        files = [PartFiles(folder, number) for number in range(len(self.parts))]
        characters = sum(int(each.index().characters.sum()) for each in files)
        if not characters:
            raise UserError(f"{self.raw}: all documents are empty; put text into them")
        is_val, boundary = self.division(characters)
        dtype, end = token_dtype(tokenizer.vocab_size), self.end_of_text(tokenizer)
        document = position = 0
        with progress("write shards", " parts", len(files)) as advance:
            for part, each in zip(self.parts, files, strict=True):
                index = each.index()
                starts = position + index.characters.cumsum() - index.characters
                val = is_val(document + index.last.cumsum() - index.last, starts)
                cut = (starts < boundary) & (boundary < starts + index.characters)  # one piece at most
                offsets = np.concatenate([[0], index.tokens.cumsum()])
                for first, stop in _runs(val, cut):
                    if cut[first]:
                        text, last = next(islice(read_part(part), first, None))
                        at = boundary - int(starts[first])
                        yield encoded_piece("train", Piece(document, text[:at], last=False), tokenizer, end)
                        yield encoded_piece("val", Piece(document, text[at:], last), tokenizer, end)
                        continue
                    ends, size = int(index.last[first:stop].sum()), int(index.utf8_bytes[first:stop].sum())
                    for ids in _read(each.ids, dtype, int(offsets[first]), int(offsets[stop])):
                        yield EncodedPiece("val" if val[first] else "train", ids, ends, size)
                        ends = size = 0  # were counted with the first of these
                document += int(index.last.sum())
                position += int(index.characters.sum())
                advance(1)


@dataclass(frozen=True)
class PartIndex:
    """The pieces of an encoded part: int64 arrays (pieces,). `last` is 1 where a document ends."""

    tokens: np.ndarray
    characters: np.ndarray
    utf8_bytes: np.ndarray
    last: np.ndarray
    sha256: str  # of the ids


@dataclass(frozen=True)
class PartFiles:
    """The files of an encoded part: ids as in a shard, and an index, which is there if the ids are whole."""

    folder: Path
    number: int

    @property
    def ids(self) -> Path:
        return self.folder / f"{self.number:05d}.bin"

    @property
    def _index(self) -> Path:
        return self.folder / f"{self.number:05d}.npz"

    def write(self, part: Iterable[Span], tokenizer: Tokenizer, end: int | None) -> None:
        """Encode a part of the corpus, in bounded memory. Raises UserError like read_file."""
        dtype = token_dtype(tokenizer.vocab_size)
        digest, pieces = hashlib.sha256(), array("I")
        with _replacing(self.ids) as file:
            for text, last in read_part(part):
                piece = encoded_piece("train", Piece(0, text, last), tokenizer, end)  # or val: not known yet
                content = piece.ids.astype(dtype, copy=False).tobytes()
                file.write(content)
                digest.update(content)
                pieces.extend((len(piece.ids), len(text), piece.utf8_bytes, last))
        with _replacing(self._index) as file:
            np.savez(file, pieces=np.array(pieces).reshape(-1, 4), sha256=np.array(digest.hexdigest()))

    def index(self) -> PartIndex:
        """Raises OSError or ValueError if there is none, or if it is damaged."""
        try:
            with np.load(self._index, allow_pickle=False) as saved:
                tokens, characters, utf8_bytes, last = saved["pieces"].T.astype(np.int64)
                return PartIndex(tokens, characters, utf8_bytes, last, str(saved["sha256"]))
        except (KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{self._index}: damaged") from None

    def are_whole(self) -> bool:
        try:
            return self.index().sha256 == sha256_file(self.ids)
        except (OSError, ValueError):
            return False


def large_parts(raw: Path) -> list[list[Span]]:
    """The parts that a large corpus is encoded in."""
    return corpus_parts(raw, max(PART_BYTES, text_bytes(raw) // MOST_PARTS))


def _runs(val: np.ndarray, cut: np.ndarray) -> Iterator[tuple[int, int]]:
    """The bounds of rows of pieces that belong to the same split; a piece that is cut stands alone."""
    changes = np.flatnonzero((val[1:] != val[:-1]) | cut[1:] | cut[:-1]) + 1
    bounds = [0, *changes.tolist(), len(val)]
    return pairwise(bounds) if len(val) else iter(())


def _read(path: Path, dtype: np.dtype, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield ids start ... stop - 1 of a file in arrays of at most READ_IDS, and one at least."""
    for first in range(start, stop, READ_IDS) or [start]:
        number = min(READ_IDS, stop - first)
        yield np.fromfile(path, dtype, number, offset=first * dtype.itemsize)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is put in place of `path` when it is whole and on disk."""
    with NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:  # on Slurm, ids of processes repeat
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
