"""Write the rows of a results table as Parquet, CSV or JSON Lines, in bounded memory."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.texts import clean_text

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.table.results import ResultRow

log = logging.getLogger(__name__)

#: The columns that every table has, in this order.
FIXED_COLUMNS = (
    *("index", "status", "error", "job_id", "reused", "outputs", "output", "sha256"),
    *("result", "execution_seconds", "cost", "created_at"),
)
# What the writer of a Parquet file holds. A row group has so many rows, or fewer when they are large.
_GROUP_ROWS = 10_000
_GROUP_CHARS = 8 * 1024 * 1024
# Arrow holds rows in a fraction of the memory that Python needs.
_PYTHON_ROWS = 1000
_INT64 = range(-(2**63), 2**63)


class ResultFile(Protocol):
    """A file that takes rows."""

    def add(self, row: ResultRow) -> None:
        """Write a row, or hold it until there are more."""

    def close(self) -> None:
        """Write what is held. A second call does nothing."""


class JsonLinesFile:
    """One JSON object in each line. Results are JSON text, as in the other formats."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        self._file = file
        self._columns = columns

    def add(self, row: ResultRow) -> None:
        fields = {name: row.values.get(name) for name in self._columns} | _fixed_fields(row)
        fields |= {"outputs": list(row.outputs), "cost": _decimal_text(row.cost)}
        self._file.write(f"{_json_text(fields)}\n".encode())

    def close(self) -> None:
        pass


class CsvFile:
    """CSV with a header. Lists, objects and results are JSON text, null is an empty cell."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        self._file = file
        self._columns = columns
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._write([*columns, *FIXED_COLUMNS])

    def add(self, row: ResultRow) -> None:
        fields = _fixed_fields(row)
        fields |= {"outputs": _json_text(list(row.outputs)), "cost": _decimal_text(row.cost)}
        self._write(
            [_csv_cell(row.values.get(name)) for name in self._columns]
            + list(map(_csv_cell, fields.values()))
        )

    def close(self) -> None:
        pass

    def _write(self, cells: list[Any]) -> None:
        self._writer.writerow(cells)
        self._file.write(self._text.getvalue().encode("utf-8", "backslashreplace"))
        self._text.seek(0)
        self._text.truncate()


class ParquetFile:
    """Parquet, in row groups of limited size."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        types = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "text": pa.string()}
        fixed = dict.fromkeys(FIXED_COLUMNS, pa.string()) | {
            "index": pa.int64(),
            "reused": pa.bool_(),
            "outputs": pa.list_(pa.string()),
            "execution_seconds": pa.float64(),
            "cost": pa.decimal128(38, 8),
            "created_at": pa.timestamp("us", tz="UTC"),
        }
        self._converters = {name: _CONVERTERS[kind] for name, kind in columns.items()}
        self._schema = pa.schema({name: types[kind] for name, kind in columns.items()} | fixed)
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._batches: list[Any] = []
        self._chars = 0
        self._misfits: dict[str, tuple[int, int]] = {}

    def add(self, row: ResultRow) -> None:
        fields = {name: self._convert(name, row) for name in self._converters} | _fixed_fields(row)
        fields["created_at"] = _parse_time(row.created_at)
        fields["outputs"] = [_valid_text(uri) for uri in row.outputs]
        fields |= {name: _valid_text(value) for name, value in fields.items() if isinstance(value, str)}
        self._rows.append(fields)
        self._chars += sum(len(value) for value in fields.values() if isinstance(value, str))
        self._chars += sum(map(len, row.outputs))
        if len(self._rows) >= _PYTHON_ROWS:
            self._to_arrow()
        if len(self._batches) * _PYTHON_ROWS >= _GROUP_ROWS or self._chars >= _GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        if not self._writer.is_open:
            return
        try:
            self._flush()
        finally:
            self._writer.close()
        for name, (count, first) in self._misfits.items():
            log.warning(
                "Wrote null for %d values of column %s of the results table, which are not of its type; "
                "the first is in row %d",
                *(count, clean_text(name, 100), first),
            )

    def _to_arrow(self) -> None:
        import pyarrow as pa

        rows, self._rows = self._rows, []
        if rows:
            self._batches.append(pa.RecordBatch.from_pylist(rows, schema=self._schema))

    def _flush(self) -> None:
        import pyarrow as pa

        self._to_arrow()
        batches, self._batches, self._chars = self._batches, [], 0
        if batches:
            self._writer.write_table(pa.Table.from_batches(batches))

    def _convert(self, name: str, row: ResultRow) -> Any:
        value = row.values.get(name)
        if value is None:
            return None
        try:
            return self._converters[name](value)
        except (ValueError, TypeError, OverflowError):
            # its job is paid for, so the table is written
            count, first = self._misfits.get(name, (0, row.index))
            self._misfits[name] = (count + 1, first)
            return None


def _fixed_fields(row: ResultRow) -> dict[str, Any]:
    """Return the fixed columns in their order. `outputs` and `cost` depend on the format."""
    seconds, created_at = row.execution_seconds, _parse_time(row.created_at)
    return {
        "index": row.index,
        "status": str(row.status),
        "error": row.error,
        "job_id": row.job_id,
        "reused": row.reused,
        "outputs": None,
        "output": row.outputs[0] if row.outputs else None,
        "sha256": row.sha256,
        "result": _result_text(row),
        "execution_seconds": None if seconds is None or not math.isfinite(seconds) else float(seconds),
        "cost": row.cost,
        "created_at": None if created_at is None else created_at.isoformat(),
    }


def _parse_time(value: datetime | str | None) -> datetime | None:
    """Return a time in UTC, or ``None`` for what is not one: a manifest may hold any text."""
    if value is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        # by its text, because pyarrow does not know the subclasses
        time = datetime.fromisoformat(value if isinstance(value, str) else value.isoformat())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return None


# --- values -------------------------------------------------------------------------------------------------


def _json_text(value: Any) -> str:
    """Return valid JSON for every value, readable where UTF-8 can express it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that is not finite
        text = json.dumps(redact_value(value), ensure_ascii=False)
    # half a surrogate pair
    return text if _valid_text(text) == text else json.dumps(json.loads(text))


def _decimal_text(number: Decimal | None) -> str | None:
    return None if number is None else f"{number:f}"


def _result_text(row: ResultRow) -> str | None:
    if row.result is None and not row.has_result:
        return None
    return _json_text(redact_value(row.result, {uri: uri for uri in row.outputs}))


def _valid_text(text: str) -> str:
    """Return a text that UTF-8 can express."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        return _json_text(value)
    return value


def _to_integer(value: Any) -> int:
    number = int(value)
    if number not in _INT64 or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _to_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else _json_text(value)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "integer": _to_integer,
    "number": float,
    "boolean": _to_boolean,
    "text": _to_text,
}


#: By suffix, the class of a file.
RESULT_FILES: dict[str, Callable[[BinaryIO, Mapping[str, str]], ResultFile]] = {
    ".parquet": ParquetFile,
    ".csv": CsvFile,
    ".jsonl": JsonLinesFile,
}
#: The types that the columns before the fixed ones may have.
COLUMN_TYPES = tuple(_CONVERTERS)
