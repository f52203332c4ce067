"""Stream a data set from the Hugging Face hub into Parquet files, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.errors import UserError, missing_extra
from pipeline.corpus.documents import parquet_writer
from pipeline.corpus.progress import counted, progress
from pipeline.storage.files import fsync
from pipeline.storage.machine import check_disk

if TYPE_CHECKING:
    import pyarrow

BATCH_DOCUMENTS = 1000
ROW_GROUP_BYTES = 1 << 26


def write_documents(
    repository: str, config: str | None, split: str, revision: str, text_column: str, folder: Path
) -> None:
    """Write the texts of one split as `folder/part-00000.parquet`, ..., with `text` as their only column.

    `repository` is a name on the hub or a local folder. Part i holds the text of the split's i-th file there,
    and appears when it is complete; parts that an earlier call wrote are kept. Raises UserError if the hub
    lacks the data set, split or column, or cannot be reached.
    """
    with _opened(repository, config, split, revision, text_column) as stream:
        if stream.column_names == [text_column]:  # else other columns may be most of the size that is known
            expected = _expected_bytes(stream.info, split) - sum(
                file.stat().st_size for file in folder.iterdir()
            )
            check_disk(folder, expected, f"the files of {repository}")
        _write_parts(stream.select_columns([text_column]).with_format("arrow"), repository, folder)


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
) -> Iterator[Any]:
    """The documents of one split as a stream."""
    try:
        import datasets
    except ImportError:
        raise missing_extra(f"{repository}, a dataset of the hub,", "hub") from None

    where = f"{repository}, revision {revision}"
    datasets.disable_progress_bars()
    try:
        stream = datasets.load_dataset(
            repository, name=config, split=split, revision=revision, streaming=True
        )
        if text_column not in (stream.column_names or [text_column]):
            columns = ", ".join(stream.column_names)
            raise UserError(f"{where}: no column {text_column!r}, only {columns}; correct source.text_column")
        yield stream
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


def _expected_bytes(info: Any, split: str) -> float:
    """About the bytes of a split in compressed files; 0 if the data set does not say."""
    known = (info.splits or {}).get(split)
    if known is None or not (info.dataset_size and info.download_size):
        return 0.0
    return float(info.download_size * known.num_bytes / info.dataset_size)


def _write_parts(stream: Any, name: str, folder: Path) -> None:
    """Write each file of a stream as a part of its own, but for those that are there."""
    from pyarrow.parquet import read_metadata

    parts = [folder / f"part-{number:05d}.parquet" for number in range(stream.num_shards)]
    done = sum(read_metadata(part).num_rows for part in parts if part.exists())
    left_out = 0
    with progress(name, " documents", done=done) as advance:
        for number, part in enumerate(parts):
            if not part.exists():
                file = stream.shard(num_shards=len(parts), index=number)
                unfinished = part.with_name(f".{part.name}.part")
                for documents, without_text in _written(file.iter(batch_size=BATCH_DOCUMENTS), unfinished):
                    advance(documents)
                    left_out += without_text
                if unfinished.exists():
                    fsync(unfinished)
                    os.replace(unfinished, part)
    if left_out:
        print(f"left out {counted(left_out, 'row')} without a text")


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
