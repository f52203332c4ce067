"""A user's files as documents: unpacked, and freed of what is not text. Each kind of file is in a table."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file, parse_json, read_text
from pipeline.corpus.documents import (
    BOM,
    CHUNK_BYTES,
    COLUMN_REMEDY,
    CONVERT,
    checked_text,
    read_file,
    read_rows,
    utf8_chunks,
)
from pipeline.storage.machine import check_disk

# Text as it is. Each file is a document.
PROSE = (".txt", ".md", ".rst", ".tex", ".org", ".adoc")
LANGUAGES = (
    ".c .cc .cfg .cpp .cs .css .cu .el .go .h .hpp .hs .ini .java .jl .js .jsx .kt .lisp .lua .ml .php "
    ".pl .py .pyi .r .rb .rs .scala .sh .sql .swift .toml .ts .tsx .yaml .yml"
)
SOURCE_CODE = tuple(LANGUAGES.split())
# Those that text is found in, the most frequent first; not those of old Macs and of DOS.
ENCODINGS = [
    *("utf_16", "utf_32", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("koi8_r", "gb18030", "big5", "cp932", "euc_jp", "cp949", "latin_1"),
]
SAMPLE_BYTES = 1 << 18  # of which an encoding is guessed
ENOUGH_BYTES = 64  # for a guess


def read_documents(path: Path, text_column: str) -> Iterator[Iterator[str]]:
    """Yield each document of a file in pieces; it is empty for a row or a page without text.

    The kind of the file is that of its name. Raises UserError for what cannot be read, and if no row has the
    field or column.
    """
    if is_plain_text(path):
        yield (text for text, _ in read_file(path))
        return
    rows = texts = 0
    for place, value in READERS[path.suffix.lower()](path, text_column):
        rows, texts = rows + 1, texts + (value is not None)
        yield iter(() if value is None else (checked_text(value, f"{path} {place}", text_column),))
    if rows and not texts:
        raise UserError(f"{path}: no row has text in {text_column!r}; {COLUMN_REMEDY}")


def read_parts(
    path: Path, text_column: str, encoding: str | None, advance: Callable[[int], None]
) -> Iterator[tuple[Path, Iterator[Iterator[str]]]]:
    """Yield each file of text in a user's file (see `unpacked`), and its documents (see `read_documents`).

    `advance` is called with the bytes of `path` that are read, as far as that is known.
    """
    left = path.stat().st_size

    def pieces_of(document: Iterator[str], plain: Path, shown: str) -> Iterator[str]:
        nonlocal left
        with named(plain, shown):
            for piece in document:
                read = min(left, len(piece))
                left -= read
                advance(read)
                yield piece

    def documents_of(plain: Path, shown: str) -> Iterator[Iterator[str]]:
        with named(plain, shown):
            for document in read_documents(plain, text_column):
                yield pieces_of(document, plain, shown)

    with unpacked(path, encoding) as files:
        for plain, shown in files:
            yield plain, documents_of(plain, shown)
    advance(left)


@contextmanager
def named(plain: Path, shown: str) -> Iterator[None]:
    """Call the file `plain` by the name that its user knows, `shown`, in a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(plain), shown)) from None


@contextmanager
def unpacked(path: Path, encoding: str | None = None) -> Iterator[Iterator[tuple[Path, str]]]:
    """The files in a packed file or an archive, as (a file of a known kind, the name to show); else the file.

    With an `encoding`, text that is not UTF-8 is read in it, and is UTF-8 here. Each file is there until the
    next is asked for. Raises UserError for damaged files, and for those not in the encoding.
    """
    with TemporaryDirectory(prefix="gpt-pipeline-") as folder:
        files = _unpack(path, str(path), Path(folder))
        yield files if encoding is None else _decoded(files, encoding, Path(folder))


def find_encoding(path: Path) -> str | None:
    """The encoding of a file of text that is not UTF-8, or of the first such file in an archive; else None.

    It is guessed from the first bytes, by charset-normalizer; of those that fit equally well, it is the first
    in ENCODINGS. Raises UserError if that is not possible.
    """
    from charset_normalizer import from_bytes

    with unpacked(path) as files:
        for plain, shown in files:
            if plain.suffix.lower() == ".parquet" or (wrong := _not_utf8_at(plain)) is None:
                continue
            with plain.open("rb") as file:
                start = file.read(SAMPLE_BYTES)
            guesses = from_bytes(start, cp_isolation=ENCODINGS) if len(start) >= ENOUGH_BYTES else ()
            if not guesses:
                raise UserError(
                    f"{shown}: not UTF-8 at byte {wrong}, and its encoding is not clear; convert it, or name "
                    "the encoding: ENCODING=latin-1 (--encoding)"
                )
            fit = {guess.encoding: (guess.chaos, -guess.coherence) for guess in guesses}
            return min(fit, key=lambda name: (fit[name], ENCODINGS.index(name)))
    return None


def check_encoding(name: str) -> None:
    """Raise UserError unless Python knows an encoding of text by this name."""
    try:
        "a".encode(name)
    except (LookupError, ValueError):
        raise UserError(
            f"ENCODING={name}: no such encoding; for example latin-1, cp1252, utf-16, gb18030"
        ) from None


def is_known(name: str) -> bool:
    """Whether the file called `name` is of a kind that can be read."""
    path = PurePosixPath(name.lower())
    if path.suffix in PACKED:
        return is_known(_unpacked_name(path))
    return path.suffix in (*PROSE, *SOURCE_CODE, *READERS, *ARCHIVES)


def is_plain_text(path: Path) -> bool:
    """Whether a file's text is its content."""
    return path.suffix.lower() in (*PROSE, *SOURCE_CODE)


def _decoded(files: Iterator[tuple[Path, str]], encoding: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """The files, with those of text that are not UTF-8 replaced by copies that are."""
    for plain, shown in files:
        if plain.suffix.lower() == ".parquet" or _not_utf8_at(plain) is None:
            yield plain, shown
            continue
        copy = folder / f"decoded{plain.suffix}"
        try:
            with (
                plain.open(encoding=encoding, newline="") as source,
                copy.open("w", encoding="utf-8", newline="") as target,
            ):
                shutil.copyfileobj(source, target)
        except UnicodeError as error:
            raise UserError(f"{shown}: not {encoding} ({error}); name its encoding: ENCODING=...") from None
        yield copy, shown
        copy.unlink()


def _not_utf8_at(path: Path) -> int | None:
    """Where the first byte is that UTF-8 does not have there; None if there is none."""
    with path.open("rb") as file:
        try:
            for _ in utf8_chunks(file, CHUNK_BYTES):
                pass
        except UnicodeDecodeError as error:
            return error.start
    return None


def _unpack(path: Path, shown: str, folder: Path) -> Iterator[tuple[Path, str]]:
    suffix = path.suffix.lower()
    check_file(path)
    try:
        if suffix in PACKED:
            plain = folder / _unpacked_name(PurePosixPath(path.name))
            with PACKED[suffix](path) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
            yield from _unpack(plain, shown, folder)
            plain.unlink()
        elif suffix in ARCHIVES:
            for name, size, source in ARCHIVES[suffix](path):
                if not size:  # such as Python's __init__.py
                    continue
                check_disk(folder, size, f"the bytes of {name}")
                plain = folder / f"member{''.join(PurePosixPath(name).suffixes[-3:])}"
                with source, plain.open("wb") as target:
                    shutil.copyfileobj(source, target)
                yield from _unpack(plain, f"{shown}/{name}", folder)
                plain.unlink()
        else:
            yield path, shown
    except _damage(suffix) as error:
        raise UserError(f"{shown}: damaged, or not what its name says ({error}); replace it") from None


def _damage(suffix: str) -> tuple[type[Exception], ...]:
    """What the libraries raise for a damaged file; RuntimeError is that of a zip file with a password."""
    found: tuple[type[Exception], ...] = (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        gzip.BadGzipFile,
    )
    if suffix == ".zst":
        import zstandard

        found = (*found, zstandard.ZstdError)
    return (*found, zipfile.BadZipFile, RuntimeError, *((OSError,) if suffix == ".bz2" else ()))


def _unpacked_name(path: PurePosixPath) -> str:
    return f"{path.stem}.tar" if path.suffix.lower() in (".tgz", ".txz") else path.stem


def _zip_members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            if not member.is_dir() and is_wanted(member.filename):
                yield member.filename, member.file_size, archive.open(member)


def _tar_members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(path, "r:") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.isfile() and is_wanted(member.name):
                source = archive.extractfile(member)
                assert source is not None, "it is a file"
                yield member.name, member.size, source


def is_wanted(name: str) -> bool:
    """Whether a file in a folder or an archive is read: not if it, or a folder that it is in, is hidden."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    return not hidden and is_known(name)


def _open_zst(path: Path) -> IO[bytes]:
    import zstandard

    return zstandard.open(path, "rb")


def _html_rows(path: Path, text_column: str) -> Iterator[tuple[str, object]]:
    """The main text of a page, without menus and scripts, by the extractor of the corpus DCLM."""
    from resiliparse.extract.html2text import extract_plain_text

    page = read_text(path, remedy=CONVERT)
    yield "page", extract_plain_text(page, main_content=True, alt_texts=False) or extract_plain_text(page)


def _csv_rows(delimiter: str) -> Callable[[Path, str], Iterator[tuple[str, object]]]:
    def read(path: Path, text_column: str) -> Iterator[tuple[str, object]]:
        csv.field_size_limit(sys.maxsize)
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=delimiter)
            try:
                if text_column not in (table.fieldnames or ()):
                    columns = ", ".join(table.fieldnames or ["none"])
                    raise UserError(f"{path}: no column {text_column!r}, only {columns}; {COLUMN_REMEDY}")
                for number, row in enumerate(table, start=2):
                    yield f"row {number}", row[text_column]
            except csv.Error as error:
                raise UserError(f"{path} line {table.line_num}: {error}; repair it") from None
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: not UTF-8 ({error.reason}); {CONVERT}") from None

    return read


def _json_rows(path: Path, text_column: str) -> Iterator[tuple[str, object]]:
    """A list of texts or of objects with a text, or one such object."""
    try:
        values = parse_json(read_text(path).removeprefix(BOM.decode()))
    except UserError as error:
        raise UserError(f"{path}: {error}".replace(f"{path}: {path}: ", f"{path}: ")) from None
    for number, value in enumerate(values if isinstance(values, list) else [values], start=1):
        yield f"item {number}", value.get(text_column) if isinstance(value, dict) else value


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".html": _html_rows,
    ".htm": _html_rows,
    ".csv": _csv_rows(","),
    ".tsv": _csv_rows("\t"),
    ".json": _json_rows,
    ".jsonl": read_rows,
    ".parquet": read_rows,
}
PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".txz": lzma.open,
    ".zst": _open_zst,
}
ARCHIVES: dict[str, Callable[[Path], Iterator[tuple[str, int, IO[bytes]]]]] = {
    ".zip": _zip_members,
    ".tar": _tar_members,
}
