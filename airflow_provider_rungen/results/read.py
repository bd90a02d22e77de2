"""Read the results table that a task wrote: as rows, as an Arrow table, or as a data frame."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from airflow_provider_rungen._airflow import ObjectStoragePath
    from airflow_provider_rungen.table.reader import Rows

__all__ = ["Results", "read_results"]

# What every results table has.
_REQUIRED = {"index", "status", "job_id", "result"}
# By the type of a column, what converts the texts of CSV and JSON Lines. Parquet is read as JSON has it.
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": json.loads,
    "texts": json.loads,
    "json": json.loads,
    "decimal": Decimal,
    "time": datetime.fromisoformat,
}


def read_results(source: Mapping[str, Any] | str | os.PathLike[str] | ObjectStoragePath) -> Results:
    """
    Return the results table of a task. Each of its methods reads the file.

    :param source: what the task returned, a dict with ``results``, or the URI or path of the table, such as
        ``s3://conn_id@bucket/results.parquet``.
    :raises RunGenInputError: it is neither, or the task wrote no table.
    """
    from airflow_provider_rungen.results.writers import WRITERS
    from airflow_provider_rungen.table.reader import is_path

    uri = source.get("results") if isinstance(source, Mapping) else source
    if isinstance(source, Mapping) and not uri:
        names = clean_text(", ".join(map(repr, source)), 200)
        raise RunGenInputError(
            f"Found no results table under 'results' in a dict of {names or 'nothing'}",
            hint="Set results on the task that returned it, or pass the URI of a table",
        )
    if not is_path(uri):
        what = f"what a task returned, or the URI of a results table, not a {type(uri).__name__}"
        raise RunGenInputError(f"read_results takes {what}")
    if not str(uri).lower().endswith((*WRITERS,)):
        shown = clean_text(repr(str(uri)), 200)
        raise RunGenInputError(f"{shown} is no results table: it must end in {' or '.join(WRITERS)}")
    return Results(uri)


class Results:
    """A results table: see `read_results`. If it cannot be read, a method raises `RunGenInputError`."""

    def __init__(self, uri: Any) -> None:
        self._uri = uri

    def rows(self, status: str | Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        """
        Return an iterator of the rows as dicts. It reads them as a stream, and is the same for each format.

        ``input`` and ``result`` are parsed, ``outputs`` is a list, ``cost`` a ``Decimal``, ``bought_at`` a
        ``datetime``. Columns of the source have the values of the file: in CSV, all are text.

        :param status: only rows with this status, or with one of these. ``failed`` stands for all but
            ``completed`` and ``skipped``.
        """
        from airflow_provider_rungen.results.rows import Status
        from airflow_provider_rungen.table.reader import open_rows

        names = [status] if isinstance(status, str) else [*(Status if status is None else status)]
        wanted = Status.named(names)
        if unknown := sorted(wanted.difference(Status)):
            raise RunGenInputError(f"status must be of {', '.join(Status)}, not {', '.join(unknown)}")
        types = {**FIXED_COLUMNS, "input": "json", "result": "json"}
        rows = _convert(open_rows(self._uri, name="results"), types)
        return (row for row in rows if status is None or row["status"] in wanted)

    def to_arrow(self) -> pyarrow.Table:
        """Return the table. Its own columns have the same types for each format; results are JSON text."""
        from airflow_provider_rungen.table.arrow import load_pyarrow
        from airflow_provider_rungen.table.files import find_files, wrap_errors
        from airflow_provider_rungen.table.reader import open_rows

        pa = load_pyarrow()
        from pyarrow.parquet import ParquetFile

        with wrap_errors("results", str(self._uri)):
            if not str(self._uri).lower().endswith(".parquet"):
                return _parse(open_rows(self._uri, name="results"))
            tables = []
            for file in find_files(self._uri, "results"):
                with file.open() as stream:
                    tables.append(ParquetFile(stream).read())
                if missing := _REQUIRED.difference(tables[-1].column_names):
                    raise _other_table(missing, clean_text(file.uri))
            return pa.concat_tables(tables)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a data frame: see `to_arrow`."""
        try:
            import pandas  # noqa: F401 - pyarrow needs it
        except ImportError:
            raise RunGenInputError(
                "Data frames need pandas, which is not installed", hint="Install it with: pip install pandas"
            ) from None
        return self.to_arrow().to_pandas()


def _convert(rows: Rows, types: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield rows in which the texts of columns with these types are converted."""
    for row in rows:
        if missing := _REQUIRED.difference(row if isinstance(row, dict) else ()):
            raise _other_table(missing, rows.place)
        try:
            values = {name: _value(types.get(name), value) for name, value in row.items()}
        except (ValueError, ArithmeticError):
            reason = f"{rows.place} has a value that is not of its column's type"
            raise RunGenInputError(f"Could not read results: {reason}") from None
        yield values


def _value(kind: str | None, value: Any) -> Any:
    if kind is None or not isinstance(value, str):
        return value
    # in CSV, null is an empty cell
    return _FROM_TEXT.get(kind, str)(value) if value else None


def _other_table(missing: Collection[str], place: str) -> RunGenInputError:
    reason = f"{place} is of another table: it has no column {' and no '.join(sorted(missing))}"
    return RunGenInputError(f"Could not read results: {reason}")


def _parse(rows: Rows) -> pyarrow.Table:
    """Return the rows of CSV or JSON Lines as an Arrow table."""
    import pyarrow as pa

    from airflow_provider_rungen.results.writers import arrow_schema, to_text

    columns: dict[str, list[Any]] = {name: [] for name in rows.column_types() or ()}
    for row in _convert(rows, FIXED_COLUMNS):
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    schema = arrow_schema(FIXED_COLUMNS)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values, schema.field(name).type if name in FIXED_COLUMNS else None)
        except (TypeError, ValueError, OverflowError):  # a column of the source, with values of several types
            arrays[name] = pa.array([None if value is None else to_text(value) for value in values])
    return pa.table(arrays) if arrays else schema.empty_table()
