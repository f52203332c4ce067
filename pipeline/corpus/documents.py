"""Read a corpus: the documents in a folder of .txt, .jsonl and .parquet files, in bounded memory.

A .txt file is one document. Each line of a .jsonl file is one, and each row of a .parquet file, with its text
in the field or column `text`. Text is kept exactly, except that a byte order mark at the start of a file is
dropped. A long document comes in pieces, which give the same tokens as the whole.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file, parse_json
from pipeline.storage.checksums import sha256_file

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile, ParquetWriter

EXTENSIONS = (".txt", ".jsonl", ".parquet")
PIECE_CHARS = 1 << 16
CHUNK_BYTES = 1 << 20
ROW_GROUP_CHARS = 1 << 24
# GPT-2's pattern always ends a word before a lone space or newline; the words on both sides do not change.
END_OF_WORD = re.compile(r".*\S(?=[ \n]\S)", re.DOTALL)
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

    A longer document is cut before a lone space or newline, where every tokenizer ends a token, or at the
    limit if there is none. Joining the pieces gives the document back. Raises UserError for a corpus without
    text, and for text that cannot be read (see read_file).
    """
    document, empty = 0, True
    for path in corpus_files(raw):
        for text, last in read_file(path, piece_chars=piece_chars):
            yield Piece(document, text, last)
            document += last
            empty = empty and not text
    if empty:
        raise UserError(f"{raw}: all documents are empty; put text into them")


class Span(NamedTuple):
    """A part of a file: of .jsonl the lines that begin in these bytes, of .parquet these row groups.

    A .txt file is a whole document, so it has no parts.
    """

    path: Path
    start: int
    stop: int
    text_bytes: int  # about


def corpus_parts(raw: Path, part_bytes: int) -> list[list[Span]]:
    """Cut a corpus into parts of about so many bytes of text, in order, without reading the text."""
    parts, size = list[list[Span]](), 0
    for path in corpus_files(raw):
        for span in _spans(path, part_bytes):
            if not parts or size + span.text_bytes > part_bytes:
                parts.append([])
                size = 0
            parts[-1].append(span)
            size += span.text_bytes
    return parts


def read_part(part: Iterable[Span]) -> Iterator[tuple[str, bool]]:
    """Yield the documents of a part of the corpus in pieces, like read_file."""
    for path, start, stop, _ in part:
        if is_table(path):
            yield from _read_table(path, "text", PIECE_CHARS, start, stop)
        else:
            yield from read_file(path)


def read_file(
    path: Path, text_column: str = "text", piece_chars: int = PIECE_CHARS
) -> Iterator[tuple[str, bool]]:
    """Yield a file's documents as (text, whether the document ends here), cut as in read_pieces.

    Raises UserError for an empty .txt file, for bytes that are not UTF-8 (with their offset or row), for
    invalid JSON (with its line), and for a line or row without text.
    """
    if is_table(path):
        yield from _read_table(path, text_column, piece_chars)
    else:
        check_file(path)
        yield from _cut(_read_txt(path, min(piece_chars, CHUNK_BYTES)), piece_chars)


def is_table(path: Path) -> bool:
    """Whether each line or row of a file is a document."""
    return path.suffix.lower() in _ROWS


def read_rows(
    path: Path, text_column: str, start: int = 0, stop: int | None = None
) -> Iterator[tuple[str, object]]:
    """Yield the place and the value of `text_column` in each row of a .jsonl or .parquet file.

    With `start` and `stop`, only the rows of that Span are read. The value of a row without that field is
    None. Raises UserError like read_file, but not for a value that is no text.
    """
    check_file(path)
    yield from _ROWS[path.suffix.lower()](path, text_column, start, stop)


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """Write a .jsonl file for read_file: one record on each line, with its text in the field `text`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_parquet(path: Path, texts: Iterable[str]) -> None:
    """Write a .parquet file for read_file, in groups of rows of ROW_GROUP_CHARS or more."""
    import pyarrow

    group, characters = list[str](), 0
    with parquet_writer(path) as writer:
        for text in texts:
            group.append(text)
            characters += len(text)
            if characters >= ROW_GROUP_CHARS:
                writer.write_table(pyarrow.table({"text": group}, writer.schema))
                group, characters = [], 0
        if group:
            writer.write_table(pyarrow.table({"text": group}, writer.schema))


def parquet_writer(path: Path) -> ParquetWriter:
    """A writer of tables with the column `text` alone."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([pyarrow.field("text", pyarrow.large_string())])
    return ParquetWriter(path, schema, compression="zstd")


def count_documents(raw: Path) -> int:
    """The number of documents in the corpus, counted without decoding their text."""
    return sum(_count(path) for path in corpus_files(raw))


def text_bytes(raw: Path) -> int:
    """About the bytes of the corpus's text."""
    return sum(_text_bytes(path) for path in corpus_files(raw))


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


def _read_table(
    path: Path, text_column: str, piece_chars: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[str, bool]]:
    for place, value in read_rows(path, text_column, start, stop):
        yield from _cut([checked_text(value, f"{path} {place}", text_column)], piece_chars)


def _spans(path: Path, span_bytes: int) -> Iterator[Span]:
    """The parts of a file that can be read alone."""
    if path.suffix == ".parquet":
        with _open_parquet(path) as table:
            for group in range(table.metadata.num_row_groups):
                yield Span(path, group, group + 1, table.metadata.row_group(group).total_byte_size)
        return
    size = path.stat().st_size
    if path.suffix == ".txt":
        yield Span(path, 0, size, size)
        return
    for start in range(0, size, span_bytes):
        stop = min(start + span_bytes, size)
        yield Span(path, start, stop, stop - start)


def _cut(chunks: Iterable[str], piece_chars: int) -> Iterator[tuple[str, bool]]:
    """Cut one document, given in chunks of any size, into pieces."""
    rest = ""
    for chunk in chunks:
        text, start = rest + chunk, 0
        while len(text) - start > piece_chars:
            found = END_OF_WORD.match(text, start, start + piece_chars + 2)
            end = found.end() if found else start + piece_chars
            yield text[start:end], False
            start = end
        rest = text[start:]
    yield rest, True


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


def _jsonl_rows(path: Path, text_column: str, start: int, stop: int | None) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # it began before
        offset = file.tell()
        for number, line in enumerate(file, start=1):
            if stop is not None and offset >= stop:
                return
            place = f"byte {offset}" if start else f"line {number}"
            skipped = _skip_bom(line) if not offset else 0
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
                raise UserError(f"{path} {place}: {error}; put one object on each line") from None
            if not isinstance(record, dict):
                raise UserError(f"{path} {place}: no object; put one object on each line")
            yield place, record.get(text_column)


def _parquet_rows(path: Path, text_column: str, start: int, stop: int | None) -> Iterator[tuple[str, object]]:
    with _open_parquet(path) as table:
        if text_column not in table.schema_arrow.names:
            columns = ", ".join(table.schema_arrow.names)
            raise UserError(f"{path}: no column {text_column!r}, only {columns}; {COLUMN_REMEDY}")
        row = sum(table.metadata.row_group(group).num_rows for group in range(start))
        for batch in _batches(table, path, text_column, start, stop):
            for value in batch.column(0):
                row += 1
                try:
                    yield f"row {row}", value.as_py()
                except UnicodeDecodeError:
                    raise UserError(f"{path} row {row}: not UTF-8; convert the text") from None


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


_ROWS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        with _open_parquet(path) as table:
            return int(table.metadata.num_rows)
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(not line.removeprefix(BOM).isspace() for line in file)
    return 1


def _text_bytes(path: Path) -> int:
    if path.suffix != ".parquet":
        return path.stat().st_size
    with _open_parquet(path) as table:
        return sum(table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))


def _open_parquet(path: Path) -> ParquetFile:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    check_file(path)
    try:
        # Otherwise it holds a whole column of a row group.
        return ParquetFile(path, buffer_size=CHUNK_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({error}); replace it") from None


def _batches(
    table: ParquetFile, path: Path, text_column: str, start: int, stop: int | None
) -> Iterator[RecordBatch]:
    import pyarrow

    groups = range(table.metadata.num_row_groups)[start:stop]
    try:
        yield from table.iter_batches(batch_size=1024, columns=[text_column], row_groups=groups)
    except (pyarrow.ArrowException, OSError) as error:  # pages are read and unpacked one after another
        raise UserError(f"{path}: damaged ({error}); replace it") from None


def _skip_bom(start: bytes) -> int:
    return len(BOM) if start.startswith(BOM) else 0


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path}: not UTF-8 at byte {offset}; {CONVERT}")
