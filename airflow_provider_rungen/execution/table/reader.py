"""Opens a table of any kind as a stream of rows: a list, files, or an Arrow table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.table import arrow, formats, parquet, values
from airflow_provider_rungen.execution.table.files import SourceFile, find_files, wrap_errors
from airflow_provider_rungen.execution.table.values import NumberedRow, RowError

_READERS: dict[str, Callable[[Any], Iterator[NumberedRow]]] = {
    "jsonl": formats.read_json_lines,
    "csv": formats.read_csv,
    "parquet": parquet.read_parquet,
}


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
        return _ArrowRows(source, name)
    if isinstance(source, list | tuple):
        return _ListRows(source, name)
    if _is_path(source):
        files = find_files(source, format, name, written)
        if not are_folders_columns:
            files = [replace(file, partition={}) for file in files]
        return _FileRows(files, str(source), name)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        kind = type(source).__name__
        raise RunGenInputError(f"{name} must be a list, the URI of files or a table, not a {kind}")
    return _IterableRows(source, name)


class Rows:
    """
    The rows of a source. JSON Lines and lists may hold other values than dicts, which the caller refuses.

    :param name: what is read, for errors.
    """

    #: The source as it was given, if it is one of files. It may be signed.
    uri: str | None = None
    #: The URIs of the files.
    files: tuple[str, ...] = ()
    _unit = "row"

    def __init__(self, name: str) -> None:
        self._name = name
        # the row or line that was yielded last, from 1
        self._number = 0
        self._is_read = False

    @property
    def place(self) -> str:
        """The name of the row that was yielded last, for an error."""
        return f"{self._unit} {self._number}" if self._number else "the table"

    @property
    def position(self) -> dict[str, Any]:
        """The ``file`` and ``line`` of the row that was yielded last, if it is from a file."""
        return {}

    def column_types(self) -> dict[str, str] | None:
        """
        Return the type of each column: ``integer``, ``number``, ``boolean`` or ``text``.

        :return: ``None`` if each row has its own.
        """
        return None

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError

    def _note_only_read(self) -> None:
        """Note that rows are read which are gone after that."""
        if self._is_read:
            raise RuntimeError(f"{self._name} can be read once only")
        self._is_read = True

    def _position(self) -> str:
        return f" after {self._unit} {self._number}" if self._number else ""

    def _numbered(self, rows: Iterable[NumberedRow]) -> Iterator[Any]:
        try:
            for self._number, row in rows:
                yield row
        except RowError as error:
            self._number = error.number
            message = f"Could not read {self._name}: {self.place} {error.reason}"
            raise RunGenInputError(message, hint=error.hint) from None


class _ListRows(Rows):
    def __init__(self, source: list[Any] | tuple[Any, ...], name: str) -> None:
        super().__init__(name)
        self._source = source

    @property
    def place(self) -> str:
        return f"{self._name}[{self._number - 1}]"

    def __iter__(self) -> Iterator[Any]:
        return self._numbered(enumerate(self._source, 1))


class _IterableRows(Rows):
    def __init__(self, source: Iterable[Any], name: str) -> None:
        super().__init__(name)
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        self._note_only_read()
        return self._numbered(enumerate(self._source, 1))


class _ArrowRows(Rows):
    def __init__(self, source: Any, name: str) -> None:
        super().__init__(name)
        pa = arrow.load_pyarrow()
        self._kind = type(source).__name__
        with wrap_errors(name, f"a {self._kind}"):
            self._reader = pa.RecordBatchReader.from_stream(source)

    def column_types(self) -> dict[str, str]:
        return arrow.column_types(self._reader.schema)

    def __iter__(self) -> Iterator[Any]:
        self._note_only_read()
        return self._read()

    def _read(self) -> Iterator[Any]:
        with wrap_errors(self._name, f"a {self._kind}", self._position), self._reader:
            yield from self._numbered(self._rows())

    def _rows(self) -> Iterator[NumberedRow]:
        converter = values.RowConverter(self._reader.schema)
        count = 0
        for batch in self._reader:
            for row in converter.rows(batch, count):
                count += 1
                yield count, row


class _FileRows(Rows):
    def __init__(self, files: Sequence[SourceFile], uri: str, name: str) -> None:
        super().__init__(name)
        self._files = files
        self.uri = uri
        self.files = tuple(file.uri for file in files)
        self._shown = clean_text(self._files[0].uri)

    @property
    def place(self) -> str:
        number = f"{self._unit} {self._number} of " if self._number else ""
        return f"{number}{self._shown}"

    @property
    def position(self) -> dict[str, Any]:
        return {"file": self._shown, "line": self._number}

    def column_types(self) -> dict[str, str] | None:
        """Return the types of the first file's columns."""
        file = self._files[0]
        if file.format == "jsonl":
            return None
        with wrap_errors(self._name, file.uri), file.open() as opened:
            if file.format == "parquet":
                types = parquet.parquet_column_types(opened)
            else:
                types = dict.fromkeys(formats.csv_header(opened), "text")
        return {**dict.fromkeys(file.partition, "text"), **types}

    def __iter__(self) -> Iterator[Any]:
        for file in self._files:
            # once for each file: callers name each row
            self._shown, self._number = clean_text(file.uri), 0
            self._unit = "row" if file.format == "parquet" else "line"
            yield from self._read(file)

    def _read(self, file: SourceFile) -> Iterator[Any]:
        with wrap_errors(self._name, file.uri, self._position), file.open() as opened:
            for row in self._numbered(_READERS[file.format](opened)):
                # a column of the file itself wins
                yield {**file.partition, **row} if file.partition and isinstance(row, dict) else row


def _is_path(source: Any) -> bool:
    if isinstance(source, str | os.PathLike):
        return True
    from airflow_provider_rungen._airflow import ObjectStoragePath

    return isinstance(source, ObjectStoragePath)
