"""Copy the text of a data set on the Hugging Face hub, piece by piece, in bounded memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.errors import UserError, missing_extra
from pipeline.corpus.documents import parquet_writer
from pipeline.corpus.fetch import bytes_here, fetch
from pipeline.corpus.progress import counted, progress
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import fsync, write_json
from pipeline.storage.machine import binary, check_disk, disk
from pipeline.storage.resuming import PROGRESS_FILE

if TYPE_CHECKING:
    import pyarrow
    from datasets import DatasetBuilder

DOWNLOADS = "downloads"  # in the folder, while there is something in it
BATCH_DOCUMENTS = 1000
ROW_GROUP_BYTES = 1 << 26


def write_documents(
    repository: str,
    config: str | None,
    split: str,
    revision: str,
    text_column: str,
    folder: Path,
    documents: int | None = None,
) -> None:
    """Write the texts of one split as `folder/part-00000.parquet`, ..., with `text` as their only column.

    `repository` is a name on the hub or a local folder. Part i holds the text of the split's i-th file there.
    A file of the hub is first downloaded as a whole, from where an interrupted call was, and verified (see
    `fetch`), then its text is copied. A part appears when it is complete, and its checksum is noted in
    PROGRESS_FILE; parts that an earlier call wrote are kept if they are still what was noted.

    `documents` says how many there are, for the progress, if that is known. Raises UserError if the hub lacks
    the data set, split or column, or cannot be reached, and before anything is downloaded if the disk is too
    small.
    """
    with _opened(repository, config, split, revision, text_column) as builder:
        pieces = _pieces(builder, split)
        finished = _finished(folder)
        _check_disk(repository, [p for p in pieces if p.part not in finished], text_column, folder)
        splits = builder.info.splits or {}
        if documents is None and split in splits:
            documents = splits[split].num_examples
        _write_parts(builder, repository, pieces, finished, text_column, folder, documents)


def find_commit(repository: str, config: str | None, split: str, revision: str, text_column: str) -> str:
    """The commit that `revision` of a data set on the hub is now; of a local folder, `revision` itself.

    Raises UserError like `write_documents`.
    """
    if Path(repository).is_dir():
        commit = revision
    else:
        from huggingface_hub import HfApi

        try:
            commit = str(HfApi().dataset_info(repository, revision=revision).sha)
        except Exception as error:
            raise UserError(f"hf:{repository}: {first_line(error)}; correct the name or try again") from None
    with _opened(repository, config, split, commit, text_column):
        return commit


@contextmanager
def _opened(
    repository: str, config: str | None, split: str, revision: str, text_column: str
) -> Iterator[DatasetBuilder]:
    """What reads the data set, once it is known to have the split and the column."""
    try:
        import datasets
    except ImportError:
        raise missing_extra(f"{repository}, a dataset of the hub,", "hub") from None

    where = f"{repository}, revision {revision}"
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(repository, name=config, revision=revision)
        stream = builder.as_streaming_dataset(split)
        if text_column not in (stream.column_names or [text_column]):
            columns = ", ".join(stream.column_names)
            raise UserError(f"{where}: no column {text_column!r}, only {columns}; correct source.text_column")
        yield builder
    except UserError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{where}: {first_line(error)}; correct source.repository or source.revision"
        ) from None
    except Exception as error:
        if is_network_error(error):
            raise UserError(
                f"{where}: cannot reach the hub ({first_line(error)}); try again with a network connection"
            ) from None
        if isinstance(error, OSError | ValueError | RuntimeError):
            raise UserError(f"{where}: {first_line(error)}; correct source in dataset.yaml") from None
        raise


@dataclass(frozen=True)
class _Piece:
    """A file of the data set, and the name of the part that gets its text.

    What has a `url` and a `sha256` is downloaded; else `datasets` reads the file at `path` as it is: on this
    machine, or a small one of the hub, which is kept in git and has no sha256.
    """

    part: str
    path: str
    size: int
    url: str = ""
    sha256: str = ""


def _pieces(builder: DatasetBuilder, split: str) -> list[_Piece]:
    """The files of a split, in order."""
    from huggingface_hub import HfFileSystem

    files, hub = builder.config.data_files, HfFileSystem()
    names = list(files) if split == "all" else split.split("+")
    pieces = []
    for number, path in enumerate(path for name in names for path in files[name]):
        part = f"part-{number:05d}.parquet"
        if path.startswith("hf://"):
            about = hub.info(path)
            known = (hub.url(path), about["lfs"]["sha256"]) if about["lfs"] else ()
            pieces.append(_Piece(part, path, about["size"], *known))
        else:
            pieces.append(_Piece(part, path, os.path.getsize(path) if os.path.exists(path) else 0))
    return pieces


class _Part(NamedTuple):
    """A part that is complete."""

    sha256: str
    documents: int


def _finished(folder: Path) -> dict[str, _Part]:
    """What is noted of the parts in `folder`, of those that are what was noted; others are removed."""
    try:
        noted = {
            name: _Part(**about)
            for name, about in json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        noted = {}
    here = {path: path.stat().st_size for path in sorted(folder.glob("part-*.parquet"))}
    finished = {}
    with progress("check what is here", "B", sum(here.values())) as advance:
        for path, size in here.items():
            if path.name in noted and sha256_file(path) == noted[path.name].sha256:
                finished[path.name] = noted[path.name]
            else:
                path.unlink()
            advance(size)
    return finished


def _check_disk(repository: str, pieces: list[_Piece], text_column: str, folder: Path) -> None:
    """Say what the missing pieces need of the disk. Raises UserError if it is too small."""
    if not pieces:
        return
    size = sum(piece.size for piece in pieces)
    share = _share_of_text(pieces[0].path, text_column)
    # A downloaded file is removed when its text is copied, so there is one at a time.
    largest = max((piece.size for piece in pieces if piece.url), default=0)
    needed = max(0, int(size * share) + largest - _downloaded(pieces, folder / DOWNLOADS))
    print(
        f"{repository}: {counted(len(pieces), 'file')}, {binary(size)} to read; needs about "
        f"{binary(needed)} of disk, {binary(disk(folder).free)} are free",
        file=sys.stderr,
        flush=True,
    )
    check_disk(folder, needed, f"the files of {repository}")


def _downloaded(pieces: list[_Piece], downloads: Path) -> int:
    """The bytes that an interrupted call downloaded of a piece."""
    return sum(bytes_here(piece.url, downloads) for piece in pieces if piece.url)


def _share_of_text(path: str, text_column: str) -> float:
    """The share of a Parquet file that is text, by its footer; of other files 0, as nobody knows."""
    from huggingface_hub import HfFileSystem
    from pyarrow.parquet import read_metadata

    on_hub = path.startswith("hf://")
    if not path.endswith(".parquet") or not (on_hub or Path(path).is_file()):
        return 0.0
    with HfFileSystem().open(path, "rb") if on_hub else open(path, "rb") as file:
        footer = read_metadata(file)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    text = sum(column.total_compressed_size for column in columns if column.path_in_schema == text_column)
    return float(text / max(1, sum(column.total_compressed_size for column in columns)))


def _write_parts(
    builder: DatasetBuilder,
    name: str,
    pieces: list[_Piece],
    finished: dict[str, _Part],
    text_column: str,
    folder: Path,
    documents: int | None,
) -> None:
    """Write each piece's text as its part, but for those that are finished."""
    downloads = folder / DOWNLOADS
    done = sum(piece.size for piece in pieces if piece.part in finished)
    shown = done + _downloaded(pieces, downloads)
    written, left_out = sum(part.documents for part in finished.values()), 0

    def documents_so_far() -> str:
        return f"{written:,} of {documents:,} documents" if documents else counted(written, "document")

    total = sum(piece.size for piece in pieces)
    with progress(name, "B", total, shown, documents_so_far) as advance:

        def show(size: int) -> None:
            nonlocal shown
            advance(size - shown)
            shown = size

        for piece in pieces:
            if piece.part in finished:
                continue
            path = _brought(piece, downloads, done, show)
            unfinished, before = folder / f".{piece.part}.part", written
            for texts, without in _written(_tables(builder, path, text_column), unfinished):
                written += texts
                left_out += without
                advance(0)
            if unfinished.exists():
                fsync(unfinished)
                finished[piece.part] = _Part(sha256_file(unfinished), written - before)
                os.replace(unfinished, folder / piece.part)
                noted = {part: about._asdict() for part, about in finished.items()}
                write_json(folder / PROGRESS_FILE, noted)
            shutil.rmtree(downloads, ignore_errors=True)
            done += piece.size
            show(done)
    if left_out:
        print(f"left out {counted(left_out, 'row')} without a text")


def _brought(piece: _Piece, downloads: Path, done: int, show: Callable[[int], None]) -> str:
    """Where `datasets` can read a piece, which is downloaded if need be; `show` gets `done` and its bytes."""
    from huggingface_hub.utils import build_hf_headers

    if not piece.url:
        return piece.path

    def at(size: int) -> None:
        show(done + size)

    return str(fetch(piece.url, piece.sha256, downloads, headers=build_hf_headers(), at=at))


def _tables(builder: DatasetBuilder, path: str, text_column: str) -> Iterator[pyarrow.Table]:
    """The texts in one file, read as the data set's own settings say."""
    builder.config.data_files = {"train": [path]}
    stream = builder.as_streaming_dataset("train").select_columns([text_column]).with_format("arrow")
    return iter(stream.iter(batch_size=BATCH_DOCUMENTS))


def _written(tables: Iterator[pyarrow.Table], path: Path) -> Iterator[tuple[int, int]]:
    """Write tables with one column of strings as a Parquet file with the column `text`, if there are any.

    Rows without a text are left out. Yields the number of documents in each row group that was written, and
    of those left out. Raises UserError if the column holds anything but strings.
    """
    import pyarrow.types as types
    from pyarrow.compute import is_valid

    writer = None
    for group in _grouped(tables):
        column = group.schema.field(0)
        if not (types.is_string(column.type) or types.is_large_string(column.type)):
            raise UserError(f"column {column.name!r} holds {column.type}; correct source.text_column")
        writer = writer or parquet_writer(path)
        texts = group.rename_columns(["text"]).cast(writer.schema)
        texts = texts.filter(is_valid(texts["text"])) if texts["text"].null_count else texts
        writer.write_table(texts)
        yield texts.num_rows, group.num_rows - texts.num_rows
    if writer:
        writer.close()


def _grouped(tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Join tables until each is large enough for one row group."""
    import pyarrow

    group: list[pyarrow.Table] = []
    for table in tables:
        group.append(table)
        if sum(part.nbytes for part in group) >= ROW_GROUP_BYTES:
            yield pyarrow.concat_tables(group)
            group = []
    if group:
        yield pyarrow.concat_tables(group)


def is_network_error(error: Exception) -> bool:
    """Whether the hub could not be reached, or refused the request.

    Errors are recognized by class name, because the HTTP library that raises them depends on the version of
    the hub's client.
    """
    names = {ancestor.__name__ for ancestor in type(error).__mro__}
    network = {
        "ConnectionError",
        "TransportError",
        "HfHubHTTPError",
        "LocalEntryNotFoundError",
        "XetDownloadError",
    }
    return not names.isdisjoint(network)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
