"""Reads the rows of a Parquet file as a stream, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.execution.table import arrow, values
from airflow_provider_rungen.execution.table.parquet_pages import TooLargeError, WatchedFile
from airflow_provider_rungen.execution.table.values import (
    LARGE_ROW_HINT,
    MAX_ROW_BYTES,
    NumberedRow,
    RowError,
)

#: Of all pages that are decompressed at a time. Some writers make pages of 100 MB.
MAX_PAGE_BYTES = 256 << 20
# Arrow's batches of a row group are as large as the group without it, and each column has such a buffer.
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
# What a column chunk has beside its values.
_CHUNK_BYTES = 16 << 10
_HINT = f"{LARGE_ROW_HINT}, or write the table with fewer rows in each row group"


def read_parquet(file: Any, max_page_bytes: int = MAX_PAGE_BYTES) -> Iterator[NumberedRow]:
    """
    Yield the rows of a Parquet file.

    :param max_page_bytes: of all pages that are decompressed at a time.
    """
    pa = arrow.load_pyarrow()
    watched = WatchedFile(file, max_page_bytes)
    with _open(watched) as table:
        converter = values.RowConverter(table.schema_arrow)
        count = 0
        for group in range(table.num_row_groups):
            for batch in _batches(table, watched, group, count):
                for row in converter.rows(batch, count):
                    count += 1
                    yield count, row
    # otherwise it keeps several times what it had in use
    pa.default_memory_pool().release_unused()


def _open(file: WatchedFile, **options: Any) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False, **options)


def _batches(table: Any, watched: WatchedFile, group: int, count: int) -> Iterator[Any]:
    """
    Yield the batches of a row group.

    :param count: how many rows came before it.
    """
    names, rows, done = arrow.used_columns(table.schema_arrow), _rows_of_batch(table, group, count), 0
    columns = names if len(names) < len(table.schema_arrow.names) else None
    compact: list[int] = []
    while rows:
        skip = done
        try:
            watched.begin(table, group, rows, compact)
            for batch in table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                part = batch.slice(skip)
                skip = max(0, skip - batch.num_rows)
                done += part.num_rows
                yield part
                watched.begin_batch()
            return
        except TooLargeError as error:
            # the rows at hand are read again: each text once, or fewer rows at a time
            if error.number is not None:
                compact.append(error.number)
                table = _open(watched, metadata=table.metadata, read_dictionary=compact)
                continue
            if rows == 1 or not error.rows:
                reason = (
                    f"cannot be read: row group {group + 1} needs {error.size >> 20} MiB at a time for "
                    f"column {clean_text(repr(error.column), 100)}, more than {error.limit >> 20} MiB"
                )
                raise RowError(count + done + 1, reason, _HINT) from None
            rows = min(error.rows, rows - 1)


def _rows_of_batch(table: Any, number: int, count: int) -> int:
    """
    Return how many rows to read at a time, so that rows of a megabyte do not fill the memory.

    :raises RowError: a row is too large.
    """
    group = table.metadata.row_group(number)
    if not group.num_rows:
        return 0
    columns = [group.column(index) for index in range(group.num_columns)]
    sizes = [(column.total_uncompressed_size, column.path_in_schema) for column in columns]
    total = sum(size for size, _ in sizes)
    if total / group.num_rows > MAX_ROW_BYTES + len(sizes) * _CHUNK_BYTES:
        size, name = max(sizes)
        reason = (
            f"or one after it has more than {MAX_ROW_BYTES >> 20} MiB: row group {number + 1} has "
            f"{total >> 20} MiB in {group.num_rows} rows, {size >> 20} of them in column "
            f"{clean_text(repr(name), 100)}"
        )
        raise RowError(count + 1, reason, _HINT)
    return int(min(max(_BATCH_BYTES * group.num_rows / max(total, 1), 1), values.ROWS_AT_A_TIME))


def parquet_column_types(file: Any) -> dict[str, str]:
    """Return the type of each column of a Parquet file as JSON has it."""
    arrow.load_pyarrow()
    with _open(WatchedFile(file, MAX_PAGE_BYTES)) as table:
        return arrow.column_types(table.schema_arrow)
