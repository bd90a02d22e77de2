"""
Read a results file from a cursor on: a hundred rows, in bounded memory and time. The functions block.

The cursor is an offset in bytes (JSON Lines, CSV), or the number of a row (Parquet).
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.results.rows import Status
from airflow_provider_rungen.results.shown import shown_row

#: Rows of one answer.
PAGE_ROWS = 100
# Bytes of a line. The model's answers are in it.
_MAX_LINE = 16 << 20
# Seconds to look for rows. What is found by then is an answer, too, and the next request goes on.
_SEARCH_TIME = 1.0
# Characters of a word that is part of many job ids.
_SHORT_WORD = 6


class Page(NamedTuple):
    """
    Some rows of a file.

    :param next: the cursor of the next ones; ``None`` at the end.
    """

    rows: list[dict[str, Any]]
    next: int | None


class Filter(NamedTuple):
    """
    Which rows are shown.

    :param status: all if it is empty; a status, ``failed`` for all but ``completed`` and ``skipped``,
        ``reused``, or ``new`` for those that this run bought.
    :param words: parts of words, each of which a row shows, in upper or lower case: in a column, its input,
        text, error or status.
    """

    status: str = ""
    words: str = ""

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row is one of them."""
        is_reused = row.get("reused") in (True, "true")
        if self.status in ("reused", "new"):
            fits = is_reused if self.status == "reused" else bool(row.get("job_id")) and not is_reused
        else:
            fits = not self.status or row.get("status") in Status.named([self.status])
        return fits and (not self.words or _has_words(row, self.words.lower().split()))


def _has_words(row: Mapping[str, Any], words: Sequence[str]) -> bool:
    # as the script of a contact sheet searches
    seen = shown_row(row, (), lambda _: None)
    texts = [seen["prompt"], seen["text"] or "", seen["error"], seen["status"]]
    text = "\n".join([*texts, *seen["columns"].values(), *seen["input"].values()]).lower()
    job_id = seen["job_id"].lower()
    return all(word in text or (len(word) > _SHORT_WORD and word in job_id) for word in words)


def read_page(file: BinaryIO, name: str, cursor: int, which: Filter) -> Page:
    """
    Return rows of a results file.

    :param file: it is seekable.
    :param name: its name, whose suffix is its format.
    :param cursor: 0, or what the page before returned.
    :raises RunGenInputError: it is no results file.
    """
    rows, until = list[dict[str, Any]](), time.monotonic() + _SEARCH_TIME
    found = read_rows(file, name, cursor, which)
    for position, row in found:
        if row is not None:
            rows.append(row)
        if len(rows) == PAGE_ROWS or time.monotonic() > until:
            return Page(rows, None if next(found, None) is None else position)
    return Page(rows, None)


def read_rows(
    file: BinaryIO, name: str, cursor: int, which: Filter
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """
    Yield the rows of a results file with the cursor after them; ``None`` for one that is not to be shown.

    The parameters and errors are those of `read_page`.
    """
    read = next((read for suffix, read in READERS.items() if name.lower().endswith(suffix)), None)
    if read is None:
        raise RunGenInputError(f"results end in none of {', '.join(READERS)}")
    try:
        for position, row in read(file, cursor):
            yield position, row if row is not None and which.matches(row) else None
    except (ValueError, csv.Error) as error:
        raise RunGenInputError(f"the results cannot be read: {type(error).__name__}") from None


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


#: What reads a format, by its suffix.
READERS: Mapping[str, _Reader] = {
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
