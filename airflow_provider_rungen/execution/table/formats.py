"""Reads the rows of a file as a stream: JSON Lines, CSV or Parquet."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from airflow_provider_rungen.execution.table import arrow, values
from airflow_provider_rungen.execution.table.values import RowError

#: A row, and its number: of the line where it begins, or of the row in a Parquet file, from 1.
NumberedRow: TypeAlias = tuple[int, Any]
# More than any prompt. A file without line ends, or with an open quotation mark, must not fill the memory.
MAX_ROW_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 16
# Arrow's batches of a row group are as large as the group without it, and each column has such a buffer.
_PARQUET_BUFFER_BYTES = 1 << 20
_PARQUET_BATCH_BYTES = 4 << 20


def read_json_lines(file: Any) -> Iterator[NumberedRow]:
    """Yield the values of a JSON Lines file. Blank lines are skipped."""
    for number, line in _lines(file):
        text = line.strip()
        if text:
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError):
                raise RowError(number, "is not JSON") from None


def read_csv(file: Any) -> Iterator[NumberedRow]:
    """Yield the rows of a CSV file with a header. All values are text. Blank lines are skipped."""
    # for the whole process, so never lower than it was
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    reader = csv.reader(_csv_lines(file), strict=True)
    header: list[str] = []
    number = 1
    try:
        for row in reader:
            if row and not header:
                values.check_names(row, number)
                header = row
            elif row:
                if len(row) != len(header):
                    raise RowError(number, f"has {len(row)} values, but the header has {len(header)}")
                yield number, dict(zip(header, row, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise RowError(number, f"is not CSV: {error}") from None


def _csv_lines(file: Any) -> Iterator[str]:
    for number, line in _lines(file):
        if "\0" in line:  # text of another encoding, or no text
            raise RowError(number, "has a NUL character")
        yield f"{line}\n"


def csv_header(file: Any) -> list[str]:
    """Return the names of the columns of a CSV file."""
    reader = csv.reader(_csv_lines(file), strict=True)
    try:
        header = next((row for row in reader if row), [])
    except csv.Error as error:
        raise RowError(1, f"is not CSV: {error}") from None
    values.check_names(header, 1)
    return header


def read_parquet(file: Any) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file."""
    pa = arrow.load_pyarrow()
    from pyarrow import parquet

    with parquet.ParquetFile(file, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as table:
        schema = table.schema_arrow
        converter = values.RowConverter(schema)
        columns = arrow.used_columns(schema)
        batches = table.iter_batches(
            batch_size=_rows_of_batch(table.metadata),
            columns=columns if len(columns) < len(schema.names) else None,
            use_threads=False,
        )
        count = 0
        for batch in batches:
            for row in converter.rows(batch, count):
                count += 1
                yield count, row
    # otherwise it keeps several times what it had in use
    pa.default_memory_pool().release_unused()


def parquet_column_types(file: Any) -> dict[str, str]:
    """Return the type of each column of a Parquet file as JSON has it."""
    arrow.load_pyarrow()
    from pyarrow import parquet

    with parquet.ParquetFile(file, pre_buffer=False) as table:
        return arrow.column_types(table.schema_arrow)


def _rows_of_batch(metadata: Any) -> int:
    """Return how many rows to read at a time, so that rows of a megabyte do not fill the memory."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(max(_PARQUET_BATCH_BYTES / max(row_bytes, 1), 1), values.ROWS_AT_A_TIME))


def _lines(file: Any) -> Iterator[tuple[int, str]]:
    """
    Yield the lines of a file, and their numbers, without line ends.

    Only line feeds end a line, since texts may hold the other separators that Python knows.
    """
    number = 0
    for number, line in enumerate(_byte_lines(file), 1):
        try:
            text = (line if number > 1 else line.removeprefix(codecs.BOM_UTF8)).decode()
        except UnicodeDecodeError:
            raise RowError(number, "is not UTF-8") from None
        yield number, text


def _byte_lines(file: Any) -> Iterator[bytes]:
    # not by readline(), which the files of some file systems lack, or have in pure Python
    parts: list[bytes] = []
    size = number = 0
    while chunk := file.read(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            number += len(others)
            parts, size = [others[-1]], len(others[-1])
        if size > MAX_ROW_BYTES:
            raise RowError(number + 1, f"has more than {MAX_ROW_BYTES >> 20} MiB")
    if size:
        yield b"".join(parts)
