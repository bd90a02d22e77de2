"""Opens a table of any kind as a stream of rows: a list, files, a query, an Arrow table, or a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain, islice
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.rows import SqlRows
from airflow_provider_rungen.table import arrow
from airflow_provider_rungen.table.files import (
    NumberedRow,
    RowError,
    SourceFile,
    TableContent,
    check_names,
    find_files,
    read_csv,
    read_json_lines,
    wrap_errors,
)
from airflow_provider_rungen.table.values import row_to_json, size_of

#: By format, what reads an open file, and what its rows are counted in.
_FORMATS: dict[str, tuple[Callable[[Any], TableContent], str]] = {
    "jsonl": (read_json_lines, "line"),
    "csv": (read_csv, "line"),
    "parquet": (arrow.read_parquet, "row"),
}
# So many rows of a query are fetched at a time, or fewer when they are large.
_FETCHED_ROWS = 256
_FETCHED_BYTES = 4 << 20


def is_path(source: Any) -> bool:
    """Return whether a source is the URI or path of files."""
    from airflow_provider_rungen._airflow import ObjectStoragePath

    return isinstance(source, str | os.PathLike | ObjectStoragePath)


def open_rows(
    source: Any,
    *,
    name: str = "table",
    written: Collection[str] = (),
) -> Rows:
    """
    Return the rows of a source. They are read when they are iterated over.

    :param source: dicts; the URI or path of a file, of a folder, or with wildcards; `SqlRows`; a cursor of a
        database; an object with ``__arrow_c_stream__``, such as a data frame; an Arrow dataset; or a function
        that returns any of these, or yields dicts or Arrow's record batches.
    :param name: what is read, for errors.
    :param written: the URIs of files that the task writes, and does not read as part of a folder.
    :raises RunGenInputError: it is none of these, or cannot be opened.
    """
    if is_made := callable(source):
        source = source()
    if isinstance(source, SqlRows):
        return Rows(name, [_Part(partial(_open_query, source), f"connection {source.conn_id!r}")])
    if hasattr(source, "scanner"):
        source = source.scanner().to_reader()
    # before Iterable: iterating over a data frame of pandas yields the names of its columns
    if hasattr(source, "__arrow_c_stream__"):
        return Rows(name, [_arrow_part(source, name)])
    if is_path(source):
        files = find_files(source, name, written)
        return Rows(name, list(map(_file_part, files)), str(source))
    if hasattr(source, "fetchmany"):
        return Rows(name, [_Part(lambda: nullcontext(_read_cursor(source)))])
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        kind = type(source).__name__
        raise RunGenInputError(f"{name} must be a list, the URI of files or a table, not a {kind}")
    part = _made_part(source) if is_made else _Part(lambda: nullcontext((None, enumerate(source, 1))))
    return Rows(name, [part])


@dataclass(frozen=True)
class _Part:
    """
    A part of a source: one of several files, or all of it.

    :param open: opens it.
    :param source: the URI of the file, or what else it is, for errors of the library that reads it.
    :param unit: what its rows are counted in.
    """

    open: Callable[[], AbstractContextManager[TableContent]]
    source: str = ""
    unit: str = "row"


def _arrow_part(source: Any, name: str) -> _Part:
    pa = arrow.load_pyarrow()
    kind = f"a {type(source).__name__}"
    with wrap_errors(name, kind):
        reader = pa.RecordBatchReader.from_stream(source)
    types = arrow.column_types(reader.schema)
    return _Part(lambda: nullcontext((types, arrow.read_batches(reader.schema, reader))), kind)


def _made_part(source: Iterable[Any]) -> _Part:
    """Return what a function has made: record batches, or dicts of any values."""
    items = iter(source)
    first = list(islice(items, 1))
    items = chain(first, items)
    if schema := getattr(first[0], "schema", None) if first else None:
        return _Part(lambda: nullcontext((arrow.column_types(schema), arrow.read_batches(schema, items))))
    rows = ((n, row_to_json(row, n) if isinstance(row, Mapping) else row) for n, row in enumerate(items, 1))
    return _Part(lambda: nullcontext((None, rows)))


def _file_part(file: SourceFile) -> _Part:
    read, unit = _FORMATS[file.format]

    @contextmanager
    def opened() -> Iterator[TableContent]:
        with file.open() as stream:
            types, rows = read(stream)
            if file.partition:
                types = types and {**dict.fromkeys(file.partition, "text"), **types}
                # a column of the file itself wins
                rows = (
                    (number, {**file.partition, **row} if isinstance(row, dict) else row)
                    for number, row in rows
                )
            yield types, rows

    return _Part(opened, file.uri, unit)


class Rows:
    """
    The rows of a source. JSON Lines and lists may hold other values than dicts, which the caller refuses.

    :param name: what is read, for errors.
    :param parts: the parts of the source, in order.
    :param uri: the source as it was given, if it is one of files. It may be signed.
    """

    def __init__(self, name: str, parts: Sequence[_Part], uri: str | None = None) -> None:
        self.uri = uri
        self._name = name
        self._parts = parts
        # what is open, and the first part if its columns were asked for: a query runs once
        self._open = ExitStack()
        self._content: TableContent | None = None
        self._enter(parts[0])

    def close(self) -> None:
        """Close what is open, if not all rows were read."""
        self._open.close()

    @property
    def place(self) -> str:
        """The name of the row that was yielded last, for an error."""
        row = f"{self._part.unit} {self._number}" if self._number else ""
        return " of ".join(filter(None, (row, self._shown))) or "the table"

    def column_types(self) -> dict[str, str] | None:
        """
        Return the type of each column of the first file: ``integer``, ``number``, ``boolean`` or ``text``.

        :return: ``None`` if each row has its own. A type is empty if it is that of the values.
        """
        with self._named_errors():
            self._content = self._open.enter_context(self._part.open())
        return self._content[0]

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            self._enter(part)
            with self._named_errors(), self._open:
                _, rows = self._content or self._open.enter_context(part.open())
                self._content = None
                for self._number, row in rows:
                    yield row

    def _enter(self, part: _Part) -> None:
        self._part = part
        # once for each part: callers name each row
        self._shown = clean_text(part.source)
        # the row or line that was yielded last, from 1
        self._number = 0

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Convert errors of reading. Those of a generator in a DAG file are its author's."""
        source = self._part.source
        try:
            with wrap_errors(self._name, source, self._position) if source else nullcontext():
                yield
        except RowError as error:
            self._number = error.number
            message = f"Could not read {self._name}: {self.place} {error.reason}"
            raise RunGenInputError(message, hint=error.hint) from None

    def _position(self) -> str:
        return f" after {self._part.unit} {self._number}" if self._number else ""


# --- queries ---


@contextmanager
def _open_query(query: SqlRows) -> Iterator[TableContent]:
    """
    Run a query, and return its columns and rows.

    :raises RunGenInputError: its connection is not one of a database.
    """
    with closing(_hook(query.conn_id).get_conn()) as connection, _streaming_cursor(connection) as cursor:
        # without parameters, a percent sign is one
        cursor.execute(query.sql, *([query.parameters] if query.parameters else ()))
        yield _read_cursor(cursor)


def _hook(conn_id: str) -> Any:
    from airflow_provider_rungen._airflow import AirflowException, BaseHook

    try:
        hook = BaseHook.get_hook(conn_id)
    except AirflowException as error:  # a kill is one, too
        if "hook type" not in str(error):
            raise
        reason, hint = (
            str(error),
            "Install the provider of this type, such as apache-airflow-providers-postgres",
        )
    else:
        if hasattr(hook, "get_records"):
            return hook
        reason, hint = f"{type(hook).__name__} runs no SQL", "SqlRows needs a hook that is a DbApiHook"
    raise RunGenInputError(f"Could not read table from connection {conn_id!r}: {reason}", hint=hint)


def _streaming_cursor(connection: Any) -> AbstractContextManager[Any]:
    """Open a cursor that leaves the rows at the server, which some drivers only do when they are asked."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in ("MySQLdb", "pymysql"):
        # not closed, which would read all rows
        return nullcontext(connection.cursor(import_module(f"{driver}.cursors").SSCursor))
    return closing(connection.cursor(*(["rungen"] if driver.startswith("psycopg") else ())))


def _read_cursor(cursor: Any) -> TableContent:
    """
    Return the columns of what a cursor has executed, and its rows. Their types are those of the values.

    :raises RowError: a column has no name, or that of another.
    """
    batch = cursor.fetchmany(1)  # before, psycopg2 does not know the columns
    names = [column[0] for column in cursor.description or ()]
    check_names(names, 0)

    def rows() -> Iterator[NumberedRow]:
        number, fetched = 0, batch
        while fetched:
            size = 0
            for values in fetched:
                number += 1
                # some cursors are set up to return dicts
                row = values if isinstance(values, Mapping) else dict(zip(names, values, strict=True))
                row = row_to_json(row, number)
                size += size_of(row)
                yield number, row
            fitting = _FETCHED_BYTES * len(fetched) // max(size, 1)
            fetched = cursor.fetchmany(min(max(fitting, 1), 4 * len(fetched), _FETCHED_ROWS))

    return dict.fromkeys(names, ""), rows()
