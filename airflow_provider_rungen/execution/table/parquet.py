"""Reads the rows of a Parquet file as a stream, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.execution.table import arrow, values
from airflow_provider_rungen.execution.table.values import (
    LARGE_ROW_HINT,
    MAX_ROW_BYTES,
    NumberedRow,
    RowError,
)

# Arrow's batches of a row group are as large as the group without it, and each column has such a buffer.
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
# What a column chunk has beside its values.
_CHUNK_BYTES = 16 << 10
_HINT = f"{LARGE_ROW_HINT}, or write the table with fewer rows in each row group"


def read_parquet(file: Any) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file."""
    pa = arrow.load_pyarrow()
    with _open(file) as table:
        converter = values.RowConverter(table.schema_arrow)
        names = arrow.used_columns(table.schema_arrow)
        columns = names if len(names) < len(table.schema_arrow.names) else None
        count = 0
        for group in range(table.num_row_groups):
            rows = _rows_of_batch(table, group, count)
            for batch in table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                for row in converter.rows(batch, count):
                    count += 1
                    yield count, row
    # otherwise it keeps several times what it had in use
    pa.default_memory_pool().release_unused()


def _open(file: Any) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _rows_of_batch(table: Any, number: int, count: int) -> int:
    """
    Return how many rows to read at a time, so that rows of a megabyte do not fill the memory.

    :param count: how many rows came before the row group.
    :raises RowError: a row is too large.
    """
    group = table.metadata.row_group(number)
    columns = [group.column(index) for index in range(group.num_columns)]
    sizes = [(column.total_uncompressed_size, column.path_in_schema) for column in columns]
    total, rows = sum(size for size, _ in sizes), max(group.num_rows, 1)
    if total / rows > MAX_ROW_BYTES + len(sizes) * _CHUNK_BYTES:
        size, name = max(sizes)
        reason = (
            f"or one after it has more than {MAX_ROW_BYTES >> 20} MiB: row group {number + 1} has "
            f"{total >> 20} MiB in {group.num_rows} rows, {size >> 20} of them in column "
            f"{clean_text(repr(name), 100)}"
        )
        raise RowError(count + 1, reason, _HINT)
    return int(min(max(_BATCH_BYTES * rows / max(total, 1), 1), values.ROWS_AT_A_TIME))


def parquet_column_types(file: Any) -> dict[str, str]:
    """Return the type of each column of a Parquet file as JSON has it."""
    arrow.load_pyarrow()
    with _open(file) as table:
        return arrow.column_types(table.schema_arrow)
