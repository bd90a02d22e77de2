"""Reads the rows of a JSON Lines or CSV file as a stream."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from typing import Any

from airflow_provider_rungen.execution.table import values
from airflow_provider_rungen.execution.table.values import (
    LARGE_ROW_HINT,
    MAX_ROW_BYTES,
    NumberedRow,
    RowError,
)

_CHUNK_BYTES = 1 << 16


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
    lines = _CsvLines(file)
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    number = 1
    try:
        for row in reader:
            lines.size = 0
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


class _CsvLines:
    """The lines of a CSV file. A row may have many; who reads it sets ``size`` to 0 after each row."""

    def __init__(self, file: Any) -> None:
        self._lines = _lines(file)
        self._first = 1
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            if "\0" in line:  # text of another encoding, or no text
                raise RowError(number, "has a NUL character")
            if not self.size:
                self._first = number
            self.size += len(line) + 1
            if self.size > MAX_ROW_BYTES + 1:
                raise _too_large(self._first)
            yield f"{line}\n"


def csv_header(file: Any) -> list[str]:
    """Return the names of the columns of a CSV file."""
    reader = csv.reader(_CsvLines(file), strict=True)
    try:
        header = next((row for row in reader if row), [])
    except csv.Error as error:
        raise RowError(1, f"is not CSV: {error}") from None
    values.check_names(header, 1)
    return header


def _too_large(number: int) -> RowError:
    return RowError(number, f"has more than {MAX_ROW_BYTES >> 20} MiB", LARGE_ROW_HINT)


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
            raise _too_large(number + 1)
    if size:
        yield b"".join(parts)
