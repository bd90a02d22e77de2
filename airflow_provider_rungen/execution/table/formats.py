"""Reads the rows of a JSON Lines or CSV file as a stream, and what all formats have in common."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from airflow_provider_rungen.client.texts import clean_text

#: A row, and its number: of the line where it begins, or of the row in an Arrow table, from 1.
NumberedRow: TypeAlias = tuple[int, Any]
#: The types of the columns, and the rows. Types are ``None`` if each row has its own.
TableContent: TypeAlias = tuple[dict[str, str] | None, Iterable[NumberedRow]]
# More than any prompt. A file without line ends, or with an open quotation mark, must not fill the memory.
MAX_ROW_BYTES = 16 << 20
LARGE_ROW_HINT = "Leave out the large values, for example by passing the URLs of files"
_CHUNK_BYTES = 1 << 16


class RowError(ValueError):
    """
    A row cannot be read.

    :param number: the row or line, from 1.
    :param reason: what is wrong with it, to follow its name.
    :param hint: what to do, if that is not obvious.
    """

    def __init__(self, number: int, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.number = number
        self.reason = reason
        self.hint = hint


def check_names(names: Sequence[str], number: int) -> None:
    """
    Check that every column has a name, and that no two have the same.

    :param names: the names of the columns.
    :param number: the row or line that has them, for the error.
    :raises RowError: a name is missing or used twice.
    """
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if not name.strip():
            raise RowError(number, f"has no name for column {position}")
        if name in seen:
            raise RowError(number, f"has two columns named {clean_text(repr(name), 100)}")
        seen.add(name)


def read_json_lines(file: Any) -> TableContent:
    """Return the values of a JSON Lines file. Blank lines are skipped."""

    def rows() -> Iterator[NumberedRow]:
        for number, line in _lines(file):
            text = line.strip()
            if text:
                try:
                    yield number, json.loads(text)
                except (ValueError, RecursionError):
                    raise RowError(number, "is not JSON") from None

    return None, rows()


def read_csv(file: Any) -> TableContent:
    """Return the rows of a CSV file with a header. All values are text. Blank lines are skipped."""
    records = _csv_records(file)
    _, header = next(records, (1, []))

    def rows() -> Iterator[NumberedRow]:
        for number, values in records:
            if len(values) != len(header):
                raise RowError(number, f"has {len(values)} values, but the header has {len(header)}")
            yield number, dict(zip(header, values, strict=True))

    return dict.fromkeys(header, "text"), rows()


def _csv_records(file: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the header of a CSV file, and each row, with the number of the line where it begins."""
    # for the whole process, so never lower than it was
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    number, size = 1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line_number, line in _lines(file):
            if "\0" in line:  # text of another encoding, or no text
                raise RowError(line_number, "has a NUL character")
            size += len(line) + 1
            if size > MAX_ROW_BYTES + 1:
                raise _too_large(number)
            yield f"{line}\n"

    reader = csv.reader(lines(), strict=True)
    try:
        header: list[str] = []
        for values in reader:
            if values and not header:
                header = values
                check_names(header, number)
            if values:
                yield number, values
            number, size = reader.line_num + 1, 0
    except csv.Error as error:
        raise RowError(number, f"is not CSV: {error}") from None


def _too_large(number: int) -> RowError:
    return RowError(number, f"has more than {MAX_ROW_BYTES >> 20} MiB", LARGE_ROW_HINT)


def _lines(file: Any) -> Iterator[tuple[int, str]]:
    """
    Yield the lines of a file, and their numbers, without line ends.

    Only line feeds end a line, since texts may hold the other separators that Python knows.
    """
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
