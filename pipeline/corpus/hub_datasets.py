"""Stream a data set from the Hugging Face hub into Parquet files, in bounded memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.errors import UserError

if TYPE_CHECKING:
    import pyarrow

BATCH_DOCUMENTS = 1000
ROW_GROUP_BYTES = 1 << 26
FILE_BYTES = 1 << 30
SECONDS_BETWEEN_LINES = 10.0


def write_documents(
    repository: str, config: str | None, split: str, revision: str, text_column: str, folder: Path
) -> None:
    """Write the texts of one split as `folder/part-00000.parquet`, ..., with `text` as their only column.

    `repository` is a name on the hub or a local folder. A file has at most about FILE_BYTES bytes. Raises
    UserError if the hub lacks the data set, split or column, or cannot be reached.
    """
    import datasets

    where = f"{repository}, revision {revision}"
    datasets.disable_progress_bars()
    try:
        stream = datasets.load_dataset(
            repository, name=config, split=split, revision=revision, streaming=True
        )
        if text_column not in (stream.column_names or [text_column]):
            columns = ", ".join(stream.column_names)
            raise UserError(f"{where}: no column {text_column!r}, only {columns}; correct source.text_column")
        tables = stream.select_columns([text_column]).with_format("arrow").iter(batch_size=BATCH_DOCUMENTS)
        write_tables(_reported(tables, repository), folder)
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


def write_tables(tables: Iterator[pyarrow.Table], folder: Path) -> None:
    """Write tables with one column of strings as Parquet files with the column `text`.

    Raises UserError if the column holds anything but strings.
    """
    import pyarrow
    import pyarrow.types as types
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([pyarrow.field("text", pyarrow.large_string())])
    part, writer = 0, None
    for group in _grouped(tables):
        column = group.schema.field(0)
        if not (types.is_string(column.type) or types.is_large_string(column.type)):
            raise UserError(f"column {column.name!r} holds {column.type}; correct source.text_column")
        path = folder / f"part-{part:05d}.parquet"
        writer = writer or ParquetWriter(path, schema, compression="zstd")
        writer.write_table(group.rename_columns(["text"]).cast(schema))
        if path.stat().st_size >= FILE_BYTES:
            writer.close()
            part, writer = part + 1, None
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


def _reported(tables: Iterator[pyarrow.Table], name: str) -> Iterator[pyarrow.Table]:
    """Pass the tables on, and report the count and rate of their rows on stderr."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    start = last = time.monotonic()
    with tqdm(desc=name, unit=" documents", unit_scale=True, disable=not terminal) as progress:
        documents = 0
        for table in tables:
            yield table
            documents += table.num_rows
            progress.update(table.num_rows)
            now = time.monotonic()
            if not terminal and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                rate = documents / (now - start)
                print(f"{name}: {documents:,} documents, {rate:,.0f} per second", file=sys.stderr, flush=True)


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
