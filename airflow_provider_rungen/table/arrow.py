"""Reads the rows of Parquet files and Arrow tables, a few megabytes at a time, as JSON has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.table.files import (
    LARGE_ROW_HINT,
    MAX_ROW_BYTES,
    NumberedRow,
    RowError,
    TableContent,
    check_names,
)
from airflow_provider_rungen.table.values import UnfitError, check_size, column_name, to_json

# Python objects take several times the memory of Arrow's, so few rows have them at a time.
_ROWS_AT_A_TIME = 1024
# Arrow's batches of a row group are as large as the group without it, and each column has such a buffer.
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
# What a column chunk has beside its values.
_CHUNK_BYTES = 16 << 10
# By their names, since older versions of pyarrow lack some of them.
_TEXTS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "fixed_size_binary")
_UUID = "extension<arrow.uuid>"
_UNREADABLE = (ValueError, OverflowError, ArithmeticError, LookupError)


def load_pyarrow() -> Any:
    """
    Return pyarrow.

    :raises RunGenInputError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise RunGenInputError(
            "Parquet files and Arrow tables need pyarrow, which is not installed",
            hint="Install it with: pip install 'airflow-provider-rungen[tables]'",
        ) from None
    return pyarrow


# --- Parquet ---


def read_parquet(file: Any) -> TableContent:
    """Return the types of the columns of a Parquet file, and its rows."""
    pa = load_pyarrow()
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)

    def rows() -> Iterator[NumberedRow]:
        yield from read_batches(table.schema_arrow, _batches(table))
        # otherwise it keeps several times what it had in use
        pa.default_memory_pool().release_unused()

    return column_types(table.schema_arrow), rows()


def _batches(table: Any) -> Iterator[Any]:
    first = 1
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        rows = _rows_of_batch(group, number, first)
        yield from table.iter_batches(rows, row_groups=[number], use_threads=False)
        first += group.num_rows


def _rows_of_batch(group: Any, number: int, first: int) -> int:
    """
    Return how many rows to read at a time, so that rows of a megabyte do not fill the memory.

    :param group: the metadata of the row group.
    :param number: its number, from 0.
    :param first: the number of its first row, from 1.
    :raises RowError: a row is too large.
    """
    sizes = [group.column(index).total_uncompressed_size for index in range(group.num_columns)]
    total, rows = sum(sizes), max(group.num_rows, 1)
    if total / rows > MAX_ROW_BYTES + len(sizes) * _CHUNK_BYTES:
        raise RowError(
            first,
            f"or one after it has more than {MAX_ROW_BYTES >> 20} MiB: row group {number + 1} has "
            f"{total >> 20} MiB in {group.num_rows} rows",
            f"{LARGE_ROW_HINT}, or write the table with fewer rows in each row group",
        )
    return int(min(max(_BATCH_BYTES * rows / max(total, 1), 1), _ROWS_AT_A_TIME))


# --- schemas and batches ---


def column_types(schema: Any) -> dict[str, str]:
    """Return the type of each column as JSON has it: everything but numbers and booleans is text."""
    pa = load_pyarrow()

    def word(kind: Any) -> str:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            return word(kind.value_type)
        if isinstance(kind, pa.BaseExtensionType):
            return word(kind.storage_type)
        if pa.types.is_boolean(kind):
            return "boolean"
        if pa.types.is_integer(kind):
            return "integer"
        return "number" if pa.types.is_floating(kind) else "text"

    return {field.name: word(field.type) for field in schema if _is_used(field.name)}


def read_batches(schema: Any, batches: Iterable[Any]) -> Iterator[NumberedRow]:
    """
    Yield the rows of Arrow's record batches.

    :param schema: the schema of all of them.
    :raises RowError: a column has no name, or that of another, or JSON has no such value.
    """
    names = list(filter(_is_used, schema.names))
    check_names(names, 0)
    # Arrow counts a text once, however often a list of a category has it
    has_categories = "dictionary<" in str(schema)
    count = 0
    for batch in batches:
        size = _bytes_of(batch)
        step = min(max(MAX_ROW_BYTES * batch.num_rows // max(size, 1), 1), _ROWS_AT_A_TIME)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            columns = [_column_values(part, name, count) for name in names]
            for values in zip(*columns, strict=True):
                count += 1
                row = dict(zip(names, values, strict=True))
                if has_categories or size > MAX_ROW_BYTES:
                    check_size(row, count)
                yield count, row


def _bytes_of(batch: Any) -> int:
    try:
        return int(batch.nbytes)
    except NotImplementedError:  # of texts as views, older versions only know all of their buffers
        return int(batch.get_total_buffer_size())


def _is_used(name: str) -> bool:
    """Return whether a column is one of the table, and not the index that pandas adds."""
    return not name.startswith("__index_level_")


# --- values ---


def _column_values(batch: Any, name: str, count: int) -> list[Any]:
    """
    Return the values of a column.

    :param count: how many rows came before the batch.
    :raises RowError: JSON has no such value. It names the first row that has one.
    """
    try:
        return _values(batch.column(name))
    except _UNREADABLE as error:
        if batch.num_rows > 1:
            for index in range(batch.num_rows):
                _column_values(batch.slice(index, 1), name, count + index)
        if isinstance(error, UnfitError):
            reason = error.reason(name)
        else:
            reason = f"has an unreadable value in {column_name(name)}: {clean_text(str(error), 200)}"
        raise RowError(count + 1, reason) from None


def _values(column: Any) -> list[Any]:
    """Return the values of a column as JSON has them."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if column.null_count == len(column):
        return [None] * len(column)
    if pa.types.is_dictionary(kind):
        # a text that many rows have is one object
        used = column.indices.unique()
        by_index = dict(zip(used.to_pylist(), _values(column.dictionary.take(used)), strict=True))
        return [by_index[index] for index in column.indices.to_pylist()]
    if pa.types.is_run_end_encoded(kind):
        return _values(compute.run_end_decode(column))
    if isinstance(kind, pa.BaseExtensionType) and str(kind) != _UUID:
        return _values(column.storage)
    return _plain_values(column)


def _plain_values(column: Any) -> list[Any]:
    from pyarrow import compute, types

    kind = column.type
    if types.is_struct(kind):
        return _objects(column)
    if types.is_map(kind):
        return _maps(column)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        items = iter(_values(column.flatten()))
        lengths = compute.list_value_length(column).to_pylist()
        return [None if length is None else list(islice(items, length)) for length in lengths]
    text = str(kind)
    is_json = types.is_boolean(kind) or types.is_integer(kind) or text in _TEXTS
    is_number = types.is_floating(kind) or types.is_decimal(kind)
    is_time = types.is_temporal(kind) and not types.is_interval(kind)
    if not (is_json or is_number or is_time or text == _UUID):
        raise UnfitError("bytes" if text.startswith(_BYTES) else f"a {text}")
    values: list[Any] = _in_microseconds(column).to_pylist()
    return values if is_json else list(map(to_json, values))


def _objects(column: Any) -> list[Any]:
    names = [field.name for field in column.type]
    if len(set(names)) < len(names):
        raise UnfitError("two fields of one name")
    fields = zip(*map(_values, column.flatten()), strict=True)
    are_there = column.is_valid().to_pylist()
    return [
        dict(zip(names, values, strict=True)) if is_there else None
        for is_there, values in zip(are_there, fields, strict=True)
    ]


def _maps(column: Any) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if str(kind.key_type) not in _TEXTS:
        raise UnfitError("a map whose keys are not text")
    # Arrow cannot flatten maps
    entries = column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    return [
        None if pairs is None else {pair["key"]: pair["value"] for pair in pairs}
        for pairs in _values(entries)
    ]


def _in_microseconds(column: Any) -> Any:
    """
    Return a column with microseconds in place of nanoseconds.

    Python has no nanoseconds: without pandas it is an error to read them, with pandas their text has more
    digits.
    """
    import pyarrow as pa

    kind = column.type
    if getattr(kind, "unit", "") != "ns":
        return column
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", tz=kind.tz), safe=False)
    return column.cast(pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us"), safe=False)
