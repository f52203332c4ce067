"""Read a corpus: the documents in a folder of .txt, .jsonl and .parquet files, in bounded memory.

A .txt file is one document. Each line of a .jsonl file is one, and each row of a .parquet file, with its text
in the field or column `text`. Text is kept exactly, except that a byte order mark at the start of a file is
dropped.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file, parse_json
from pipeline.storage.checksums import sha256_file

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

EXTENSIONS = (".txt", ".jsonl", ".parquet")
PIECE_CHARS = 1 << 24
COLUMN_REMEDY = "correct the file, or name the column: make train-on TEXT=... COLUMN=..."
CONVERT = "convert it, for example with iconv -t UTF-8"
BOM = codecs.BOM_UTF8


@dataclass(frozen=True)
class Piece:
    """A part of a document. `document` is its number in the corpus, from 0; `last` marks the final part."""

    document: int
    text: str
    last: bool


def read_pieces(raw: Path, piece_chars: int = PIECE_CHARS) -> Iterator[Piece]:
    """Yield every document in pieces of at most `piece_chars` characters, file by file in order of name.

    A longer document is cut after a newline, or at the limit if there is no newline before it. Joining
    the pieces gives the document back. Raises UserError for a corpus without text, and for text that cannot
    be read (see read_file).
    """
    document, empty = 0, True
    for path in corpus_files(raw):
        for text, last in read_file(path, piece_chars=piece_chars):
            yield Piece(document, text, last)
            document += last
            empty = empty and not text
    if empty:
        raise UserError(f"{raw}: all documents are empty; put text into them")


def read_file(
    path: Path, text_column: str = "text", piece_chars: int = PIECE_CHARS
) -> Iterator[tuple[str, bool]]:
    """Yield a file's documents as (text, whether the document ends here), cut as in read_pieces.

    Raises UserError for an empty .txt file, for bytes that are not UTF-8 (with their offset or row), for
    invalid JSON (with its line), and for a line or row without text.
    """
    check_file(path)
    read = {".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(path.suffix.lower())
    if read is None:
        yield from _cut(_read_txt(path, piece_chars), piece_chars)
    else:
        for text in read(path, text_column):
            yield from _cut([text], piece_chars)


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """Write a .jsonl file for read_file: one record on each line, with its text in the field `text`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def count_documents(raw: Path) -> int:
    """The number of documents in the corpus, counted without decoding their text."""
    return sum(_count(path) for path in corpus_files(raw))


def count_characters(raw: Path) -> int:
    """The number of characters in the corpus. This reads, and so checks, all of the text."""
    return sum(len(piece.text) for piece in read_pieces(raw))


def fingerprint(paths: Iterable[Path], sha256: Callable[[Path], str] = sha256_file) -> str:
    """SHA-256 over the name and SHA-256 of each file."""
    lines = [f"{path.name} {sha256(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def corpus_files(raw: Path) -> list[Path]:
    """The files that hold the documents, sorted by name. Raises UserError if there are none."""
    paths = sorted(path for path in raw.glob("*") if path.suffix in EXTENSIONS)
    if not paths:
        raise UserError(f"{raw}: no {', '.join(EXTENSIONS)} files; run `dvc repro download` first")
    return paths


def _cut(chunks: Iterable[str], piece_chars: int) -> Iterator[tuple[str, bool]]:
    """Cut one document, given in chunks of any size, into pieces."""
    pending = ""
    for chunk in chunks:
        pending += chunk
        while len(pending) > piece_chars:  # not >=, so that some text is left for the last piece
            end = pending.rfind("\n", 0, piece_chars) + 1 or piece_chars
            yield pending[:end], False
            pending = pending[end:]
    yield pending, True


def utf8_chunks(file: BinaryIO, chunk_bytes: int) -> Iterator[str]:
    """The rest of a file as text. Raises UnicodeDecodeError, whose `start` is the place in the whole file."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), file.tell()
    while True:
        chunk = file.read(chunk_bytes)
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            error.start += offset - waiting
            raise
        yield text
        if not chunk:
            return
        offset += len(chunk)


def _read_txt(path: Path, chunk_bytes: int) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(_skip_bom(file.read(len(BOM))))
        empty = True
        try:
            for text in utf8_chunks(file, chunk_bytes):
                yield text
                empty = empty and not text
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error.start) from None
    if empty:
        raise UserError(f"{path}: empty file; put text into it or remove it")


def _read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            skipped = _skip_bom(line) if number == 1 else 0
            try:
                content = line[skipped:].decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + skipped + error.start) from None
            offset += len(line)
            if not content.strip():
                continue
            try:
                record = parse_json(content)
            except UserError as error:
                raise UserError(f"{where}: {error}; put one object on each line") from None
            text = record.get(text_column) if isinstance(record, dict) else None
            yield checked_text(text, where, text_column)


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    with _open_parquet(path) as table:
        if text_column not in table.schema_arrow.names:
            columns = ", ".join(table.schema_arrow.names)
            raise UserError(f"{path}: no column {text_column!r}, only {columns}; {COLUMN_REMEDY}")
        row = 0
        for batch in _batches(table, path, text_column):
            for value in batch.column(0):
                row += 1
                try:
                    text = value.as_py()
                except UnicodeDecodeError:
                    raise UserError(f"{path} row {row}: not UTF-8; convert the text") from None
                yield checked_text(text, f"{path} row {row}", text_column)


def checked_text(text: object, where: str, text_column: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: no text in {text_column!r}; {COLUMN_REMEDY}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half a character, such as \ud800
        raise UserError(
            f"{where}: lone surrogate at character {error.start} of the text; remove it"
        ) from None
    return text


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        with _open_parquet(path) as table:
            return int(table.metadata.num_rows)
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(not line.removeprefix(BOM).isspace() for line in file)
    return 1


def _open_parquet(path: Path) -> ParquetFile:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    check_file(path)
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({error}); replace it") from None


def _batches(table: ParquetFile, path: Path, text_column: str) -> Iterator[RecordBatch]:
    import pyarrow

    try:
        yield from table.iter_batches(batch_size=1024, columns=[text_column])
    except (pyarrow.ArrowException, OSError) as error:  # pages are read and unpacked one after another
        raise UserError(f"{path}: damaged ({error}); replace it") from None


def _skip_bom(start: bytes) -> int:
    return len(BOM) if start.startswith(BOM) else 0


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path}: not UTF-8 at byte {offset}; {CONVERT}")
