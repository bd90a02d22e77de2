"""
Read a results file from a cursor on: a hundred rows, in bounded memory and time. The functions block.

The cursor is an offset in bytes (JSON Lines, CSV), or the number of a row (Parquet).
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.results.rows import Status

#: Rows of one answer.
PAGE_ROWS = 100
# Bytes of a line. The model's answers are in it.
_MAX_LINE = 16 << 20
# Seconds to look for rows. What is found by then is an answer, too, and the next request goes on.
_SEARCH_TIME = 2.0


class Page(NamedTuple):
    """
    Some rows of a file.

    :param next: the cursor of the next ones; ``None`` at the end.
    """

    rows: list[dict[str, Any]]
    next: int | None


def read_page(file: BinaryIO, name: str, cursor: int, status: str) -> Page:
    """
    Return rows of a results file.

    :param file: it is seekable.
    :param name: its name, whose suffix is its format.
    :param cursor: 0, or what the page before returned.
    :param status: which rows; see `matches`.
    :raises RunGenInputError: it is no results file.
    """
    read = next((read for suffix, read in _READERS.items() if name.lower().endswith(suffix)), None)
    if read is None:
        raise RunGenInputError(f"results end in none of {', '.join(_READERS)}")
    rows, until = list[dict[str, Any]](), time.monotonic() + _SEARCH_TIME
    statuses = wanted(status)
    try:
        found = read(file, cursor)
        for position, row in found:
            if row is not None and matches(row, statuses):
                rows.append(row)
            if len(rows) == PAGE_ROWS or time.monotonic() > until:
                return Page(rows, None if next(found, None) is None else position)
    except (ValueError, csv.Error, UnicodeError) as error:
        raise RunGenInputError(f"the results cannot be read: {type(error).__name__}") from None
    return Page(rows, None)


def wanted(status: str) -> Collection[str]:
    """Return the statuses that a filter names: ``failed`` is all but ``completed`` and ``skipped``."""
    return {"reused"} if status == "reused" else Status.named([status] if status else [])


def matches(row: Mapping[str, Any], statuses: Collection[str]) -> bool:
    """Return whether a row has one of some statuses, or, with ``reused``, was bought by another run."""
    is_reused = row.get("reused") in (True, "true")
    return not statuses or row.get("status") in statuses or ("reused" in statuses and is_reused)


# Each yields rows with the cursor after them; ``None`` for a row that is too large to show.
_Reader = Callable[[BinaryIO, int], Iterator[tuple[int, dict[str, Any] | None]]]


def _read_json_lines(file: BinaryIO, cursor: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    file.seek(cursor)
    position = cursor
    while line := file.readline(_MAX_LINE):
        position += len(line)
        is_whole = line.endswith(b"\n") or len(line) < _MAX_LINE
        while not is_whole and (rest := file.readline(_MAX_LINE)):
            position += len(rest)
            is_whole = rest.endswith(b"\n")
            line = b""
        row = json.loads(line) if line.strip() else None
        yield position, row if isinstance(row, dict) else None


class _Lines:
    """The lines of a file as text, and where the last one ended."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def seek(self, position: int) -> None:
        self.position = position
        self._file.seek(position)

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(_MAX_LINE):
            self.position += len(line)
            yield line.decode()


def _read_csv(file: BinaryIO, cursor: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE))
    lines = _Lines(file)
    columns = next(csv.reader(lines), [])
    lines.seek(max(cursor, lines.position))
    for cells in csv.reader(lines):
        yield lines.position, dict(zip(columns, cells, strict=False))


def _read_parquet(file: BinaryIO, cursor: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    from pyarrow.parquet import ParquetFile

    parquet = ParquetFile(file)
    first = 0
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        if first + count > cursor:
            number = first
            for batch in parquet.iter_batches(batch_size=PAGE_ROWS, row_groups=[group]):
                start = max(0, cursor - number)
                for row in batch.slice(start).to_pylist() if start < len(batch) else ():
                    yield number + start + 1, row
                    start += 1
                number += len(batch)
        first += count


_READERS: Mapping[str, _Reader] = {
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
