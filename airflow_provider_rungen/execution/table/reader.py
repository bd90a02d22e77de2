"""Opens a table of any kind as a stream of rows: a list, files, or an Arrow table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.table import arrow
from airflow_provider_rungen.execution.table.files import (
    RowError,
    SourceFile,
    TableContent,
    find_files,
    read_csv,
    read_json_lines,
    wrap_errors,
)

#: By format, what reads an open file, and what its rows are counted in.
_FORMATS: dict[str, tuple[Callable[[Any], TableContent], str]] = {
    "jsonl": (read_json_lines, "line"),
    "csv": (read_csv, "line"),
    "parquet": (arrow.read_parquet, "row"),
}


def is_path(source: Any) -> bool:
    """Return whether a source is the URI or path of files."""
    from airflow_provider_rungen._airflow import ObjectStoragePath

    return isinstance(source, str | os.PathLike | ObjectStoragePath)


def open_rows(
    source: Any,
    *,
    format: str | None = None,
    name: str = "inputs",
    written: str = "",
    are_folders_columns: bool = False,
) -> Rows:
    """
    Return the rows of a source. They are read when they are iterated over.

    :param source: dicts; the URI or path of a file, of a folder, or with wildcards; or an object with
        ``__arrow_c_stream__``, such as a data frame.
    :param format: ``jsonl``, ``csv`` or ``parquet``, if it is not that of the suffix.
    :param name: what is read, for errors.
    :param written: the URI of a file that the task writes, and does not read as part of a folder.
    :param are_folders_columns: whether folders such as ``dt=2026-01-31`` are columns of their rows.
    :raises RunGenInputError: it is none of these, or cannot be opened.
    """
    # before Iterable: iterating over a data frame of pandas yields the names of its columns
    if hasattr(source, "__arrow_c_stream__"):
        return Rows(name, [_arrow_part(source, name)])
    if is_path(source):
        files = find_files(source, format, name, written)
        if not are_folders_columns:
            files = [replace(file, partition={}) for file in files]
        return Rows(name, list(map(_file_part, files)), str(source))
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        kind = type(source).__name__
        raise RunGenInputError(f"{name} must be a list, the URI of files or a table, not a {kind}")
    return Rows(name, [_Part(lambda: nullcontext((None, enumerate(source, 1))))])


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
        self._enter(parts[0])

    @property
    def place(self) -> str:
        """The name of the row that was yielded last, for an error."""
        row = f"{self._part.unit} {self._number}" if self._number else ""
        return " of ".join(filter(None, (row, self._shown))) or "the table"

    @property
    def position(self) -> dict[str, Any]:
        """The ``file`` and ``line`` of the row that was yielded last."""
        return {"file": self._shown, "line": self._number}

    def column_types(self) -> dict[str, str] | None:
        """
        Return the type of each column of the first file: ``integer``, ``number``, ``boolean`` or ``text``.

        :return: ``None`` if each row has its own.
        """
        with self._named_errors(), self._part.open() as (types, _):
            return types

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            self._enter(part)
            with self._named_errors(), part.open() as (_, rows):
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
