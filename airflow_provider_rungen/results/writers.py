"""Write a table of results as Parquet, CSV or JSON Lines: in bounded memory, as a whole or not at all."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS
from airflow_provider_rungen.table.arrow import load_pyarrow

if TYPE_CHECKING:
    from airflow_provider_rungen.results.rows import ResultRow, Values

log = logging.getLogger(__name__)

# A row group of Parquet has so many rows, or fewer when they are large. Python needs about 3 kB for each.
_GROUP_ROWS = 4_000
_GROUP_CHARS = 8 << 20
_CSV_END = "\r\n"
INT64 = range(-(2**63), 2**63)


_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def json_text(value: Any) -> str:
    """Return valid JSON for every value, readable where UTF-8 can express it."""
    try:
        text = _to_json(value)
        text.encode()
    except ValueError:  # a number that is not finite, or half a surrogate pair
        text = json.dumps(redact_value(value))
    return text


def write_json_lines(file: BinaryIO, columns: Mapping[str, str], rows: Iterable[Values]) -> None:
    """Write one JSON object in each line."""
    for row in rows:
        file.write(f"{json_text(row)}\n".encode())


def write_csv(file: BinaryIO, columns: Mapping[str, str], rows: Iterable[Values]) -> None:
    """Write CSV with a header. Lists, objects and booleans are JSON text, null is an empty cell."""
    # before Python 3.13, a cell is quoted only for line ends that are in this one
    writer = csv.writer(_CsvLines(file), lineterminator=_CSV_END)
    writer.writerow(columns)
    for row in rows:
        writer.writerow(map(_cell, row.values()))


class _CsvLines:
    """Takes the lines of a CSV writer. Each ends with a line feed, and has no NUL, which CSV cannot hold."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(f"{to_csv(line.removesuffix(_CSV_END))}\n".encode())


def to_csv(text: str) -> str:
    """Return a text as it is in a CSV file, which has escapes for what it cannot hold."""
    return to_text(text).replace("\0", "\\x00")


def _cell(value: Any) -> Any:
    is_plain = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
    return value if is_plain else json_text(value)


def write_parquet(file: BinaryIO, columns: Mapping[str, str], rows: Iterable[Values]) -> None:
    """Write Parquet, in row groups of limited size. A value that is not of its column's type is null."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = arrow_schema(columns)
    with ParquetWriter(file, schema) as writer:
        for group in _groups(_typed(columns, rows)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _typed(columns: Mapping[str, str], rows: Iterable[Values]) -> Iterator[Values]:
    """Yield rows whose values have the types of the columns."""
    converters = {name: _converter(kind) for name, kind in columns.items()}
    misfits: set[str] = set()
    for row in rows:
        typed: Values = dict.fromkeys(columns)
        for name, convert in converters.items():
            try:
                if row[name] is not None:
                    typed[name] = convert(row[name])
            except (ValueError, TypeError, OverflowError):
                # its job is paid for, so the table is written
                if name not in misfits:
                    misfits.add(name)
                    log.warning(
                        "Column %s of the results table has null where a value is not of its type, "
                        "as in row %d",
                        *(clean_text(name, 100), row["index"]),
                    )
        yield typed


def _groups(rows: Iterable[Values]) -> Iterator[list[Values]]:
    group: list[Values] = []
    chars = 0
    for row in rows:
        group.append(row)
        texts = (each for value in row.values() for each in (value if isinstance(value, list) else [value]))
        chars += sum(len(each) for each in texts if isinstance(each, str))
        if len(group) == _GROUP_ROWS or chars >= _GROUP_CHARS:
            yield group
            group, chars = [], 0
    if group:
        yield group


# --- the types of columns ---


def _to_integer(value: Any) -> int:
    number = int(value)
    if number not in INT64 or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _to_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def to_text(value: Any) -> str:
    """Return a text that UTF-8 can express."""
    text = value if isinstance(value, str) else json_text(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _to_time(value: Any) -> datetime:
    time = datetime.fromisoformat(value)
    # one at the end of time may be none in UTC
    return time if time.tzinfo is None else time.astimezone(UTC)


def _to_list(convert: Callable[[Any], Any], values: Any) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise TypeError
    return [None if each is None else convert(each) for each in values]


# By type, its type in Arrow, given pyarrow, and what converts a value to it. The plural is a list: ``texts``.
_TYPES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "integer": (lambda pa: pa.int64(), _to_integer),
    "number": (lambda pa: pa.float64(), float),
    "boolean": (lambda pa: pa.bool_(), _to_boolean),
    "text": (lambda pa: pa.string(), to_text),
    "json": (lambda pa: pa.string(), json_text),
    "decimal": (lambda pa: pa.decimal128(38, 8), Decimal),
    "time": (lambda pa: pa.timestamp("us", tz="UTC"), _to_time),
}


def _converter(kind: str) -> Callable[[Any], Any]:
    _, convert = _TYPES[kind.removesuffix("s")]
    return partial(_to_list, convert) if kind.endswith("s") else convert


def arrow_schema(columns: Mapping[str, str]) -> Any:
    """
    Return the Arrow schema of a table.

    :param columns: its columns with their types: see `write_parquet`.
    """
    import pyarrow as pa

    def type_of(kind: str) -> Any:
        make, _ = _TYPES[kind.removesuffix("s")]
        return pa.list_(make(pa)) if kind.endswith("s") else make(pa)

    return pa.schema({name: type_of(kind) for name, kind in columns.items()})


# --- the file ---

#: By suffix, what writes rows to a file. It takes the columns with their types: see `write_parquet`.
WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, str], Iterable[Values]], None]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".jsonl": write_json_lines,
}


class ResultsTable:
    """
    A table of results.

    :param uri: the file to write, as `ObjectStoragePath` accepts it. Its suffix is the format.
    :param columns: the types of its columns beside those of the source, by name: see `write_parquet`.
    :raises RunGenInputError: it cannot be written: its place, its suffix, or pyarrow is missing.
    """

    def __init__(self, uri: Any, columns: Mapping[str, str] = FIXED_COLUMNS) -> None:
        self._columns = columns
        self.uri = str(uri)
        self.folder, slash, self._name = self.uri.rpartition("/")
        self._suffix = next((each for each in WRITERS if self._name.lower().endswith(each)), "")
        if not self._suffix:
            shown = clean_text(self.uri, 200)
            raise RunGenInputError(f"results {shown!r} must end in {' or '.join(WRITERS)}")
        if self._suffix == ".parquet":
            load_pyarrow()
        self._storage = Storage(self.folder + slash, "results")

    def prepare(self) -> None:
        """
        Find out whether the table can be written.

        :raises RunGenInputError: it cannot be written now.
        """
        self._storage.prepare()

    def create_folder(self) -> None:
        """Create the folder of the table, where folders are created."""
        self._storage.create_root()

    def write(self, rows: Iterable[ResultRow], source: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Write the table. It replaces an older one once it is complete.

        :param source: the types of the columns of the source, by name: see `write_parquet`.
        :raises RunGenOutputError: it could not be written. An older table is still there.
        """
        reason = f"Could not write the results table {clean_text(self.uri, 200)}"
        written = (row.written(source, self._columns) for row in rows)
        try:
            self._storage.remove_leftovers("")
            with self._storage.incoming("", self._name) as (file, path):
                WRITERS[self._suffix](file, {**source, **self._columns}, written)
                self._storage.put(file, path, "", self._name)
        except (RunGenOutputError, OSError) as error:
            if isinstance(error, OSError):
                text = clean_text(redact_error(error, self.uri), 200)
                error = RunGenOutputError(text, hint="Check results, and that the worker may write to it")
            message = f"{reason}: {error.message}"
            # not chained, because the text of the cause would be logged unredacted
            raise error.revised(message, hint=error.hint, retryable=error.retryable) from None
        log.debug("Wrote the results table %s", clean_text(self.uri))
